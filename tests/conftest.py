"""What all tests share: in continuous integration, a skip for lack of a program is a failure.

``TELEMETRY_REQUIRE`` lists words (``node,kafka,postgres``). A test that skips although its reason
or one of its marks holds such a word fails. Without the variable, skips stay skips, shown by -ra.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Generator, Iterable
from typing import Any

import pytest
import structlog
from hypothesis import settings

# A machine that others use too makes a deadline a coin toss. In continuous integration a change is
# judged by the same examples each time; new ones are looked for on engineers' machines.
settings.register_profile("ours", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("ours"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "ours")

_REQUIRED = {word.strip().lower() for word in os.environ.get("TELEMETRY_REQUIRE", "").split(",")}


def broken_promise(reason: str, marks: Iterable[str], required: Iterable[str]) -> str:
    """Give the required word that a skip breaks; empty if it breaks none."""
    said = {word.lower() for word in re.findall(r"[A-Za-z]+", reason)} | set(marks)
    # Reasons are prose: "PostgreSQL" and "psycopg" both mean what the list calls postgres.
    if any(word.startswith(("postgres", "psycopg")) for word in said):
        said.add("postgres")
    return next(iter(sorted((set(required) - {""}) & said)), "")


def _fail(report: Any, marks: Iterable[str]) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if word := broken_promise(reason, marks, _REQUIRED):
        report.outcome = "failed"
        report.longrepr = f"{reason}: but TELEMETRY_REQUIRE says that {word!r} is here"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail(report, {mark.name for mark in item.iter_markers()})
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail(report, ())
    return report


def require(tool: str, missing: str = "") -> None:
    """Go on only if `tool` is there: else skip, or fail where ``TELEMETRY_REQUIRE`` names it.

    Args:
        tool: The word by which ``TELEMETRY_REQUIRE`` names it.
        missing: What is not there; empty if all is.
    """
    if missing:
        pytest.skip(f"needs {tool}: {missing}")


@pytest.fixture(autouse=True)
def _logging_as_found() -> Generator[None, None, None]:
    """Take back what a command that ran in this process set up: the next test has other streams."""
    root, ours = logging.getLogger(), logging.getLogger("telemetry")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
