"""WSGI middleware: each request of an application becomes the current `request`.

Works with whatever speaks WSGI (Flask, Django, Bottle, Pyramid). Reads no body and changes no
response. WSGI does not tell the matched route: set ``route`` on the current request where the
framework knows it, or the reduced path stands in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import telemetry
from telemetry.context import Request

__all__ = ["TelemetryMiddleware"]

_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class TelemetryMiddleware:
    """Wrap a WSGI application.

    An exception that leaves the application is reported once and goes on its way.

    Args:
        app: The application.
    """

    def __init__(self, app: _App) -> None:
        self._app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""
        request = telemetry.request(
            method=environ.get("REQUEST_METHOD"),
            url=environ.get("PATH_INFO"),
            headers=_headers(environ),
            client_ip=environ.get("REMOTE_ADDR"),
        )
        with request:
            try:
                body = self._app(environ, start_response)
            except Exception as error:
                telemetry.capture_exception(error)
                raise
        # A list is there already; a server may send a file by itself only if it gets it as it is.
        wrapper = environ.get("wsgi.file_wrapper")
        whole = (list, tuple, wrapper) if isinstance(wrapper, type) else (list, tuple)
        if isinstance(body, whole):
            return body
        return _Body(body, request)


class _Body:
    """A response that is made while it is sent: each piece is made within the request."""

    def __init__(self, body: Iterable[bytes], request: Request) -> None:
        self._body, self._pieces, self._request = body, iter(body), request

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._request:
            try:
                return next(self._pieces)
            except StopIteration:
                raise
            except Exception as error:
                telemetry.capture_exception(error)
                raise

    def close(self) -> None:
        """Close what we wrap, as PEP 3333 asks."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with self._request:
                close()


def _headers(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give the request's headers under their own names (PEP 3333, environ Variables)."""
    return [
        (name[5:].replace("_", "-"), value)
        for name, value in environ.items()
        if name.startswith("HTTP_") and isinstance(value, str)
    ]
