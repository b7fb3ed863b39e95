"""Our own log lines. Owns how they look and that nothing foreign gets into them.

JSON in production, readable on a terminal. Every line of a third-party library goes the same way
with its arguments dropped: they quote requests, records and addresses (reliability.md, K10).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal

import structlog

__all__ = ["configure", "place"]

_OURS: Final = "telemetry"


class _ForeignFilter(logging.Filter):
    """Lets warnings of other libraries through as the bare name of who warned."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == _OURS:
            return True
        record.msg, record.args = "third_party_warning", ()
        record.exc_info = record.exc_text = record.stack_info = None
        return record.levelno >= logging.WARNING


class _Stderr(logging.StreamHandler[Any]):
    """Standard error; a line that cannot be written is lost without a word.

    The standard library would print the exception being handled and the line's arguments instead
    (``logging.raiseExceptions``), and those quote values.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 — logging's own name
        """Say nothing of a line that could not be written."""


def place(error: BaseException) -> dict[str, str]:
    """Say what an error is and where it rose; its text and locals may quote a value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    at = "" if trace is None else f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
    return {"error": type(error).__name__, "at": at}


def _name_error(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Show an exception that a line carries by its type and place."""
    error = event.pop("exc_info", None)
    if isinstance(error, BaseException):
        event.update(place(error))
    return event


def configure(style: Literal["auto", "json", "console"], *, production: bool) -> None:
    """Set up structlog and the standard library's logging for a process of ours.

    Args:
        style: ``auto`` means JSON in production or when nobody watches, else the console.
        production: Whether ``environment`` is production.
    """
    as_json = style == "json" or (style == "auto" and (production or not sys.stderr.isatty()))
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_error,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(pad_event_to=0)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = _Stderr(sys.stderr)
    handler.addFilter(_ForeignFilter())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.INFO)
