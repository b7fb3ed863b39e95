"""Our log lines: nothing foreign in them, and nothing at all when they cannot be written."""

from __future__ import annotations

import io
import logging
import sys

import pytest
import structlog

from telemetry import logs

PLANTED = "mareike.planted@example.org"


def _fail() -> None:
    raise ValueError(PLANTED)


def test_a_line_that_cannot_be_written_is_lost_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = io.StringIO()
    with monkeypatch.context() as while_configured:
        while_configured.setattr(sys, "stderr", gone)
        logs.configure("json", production=True)
    gone.close()
    try:
        _fail()
    except ValueError as error:
        structlog.get_logger("telemetry.run").error("failed", exc_info=error)
        logging.getLogger("kafka.consumer").warning("record %s", PLANTED)
    assert "".join(capfd.readouterr()) == ""


def test_lines_of_others_are_named_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    logs.configure("json", production=True)
    try:
        _fail()
    except ValueError:
        logging.getLogger("kafka.consumer").exception("record %s", PLANTED)
    assert "kafka.consumer" in seen.getvalue()
    assert PLANTED not in seen.getvalue()


def test_a_logger_from_before_follows_the_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    log = structlog.get_logger("telemetry.run")
    log.info("early")
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    logs.configure("json", production=True)
    log.info("later")
    assert '"event": "later"' in seen.getvalue()
