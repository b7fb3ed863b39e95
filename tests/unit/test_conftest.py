"""A skip for lack of what continuous integration promises is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SKIPS = """
import pytest

def test_that_needs_node() -> None:
    pytest.skip("needs Node.js 20")

@pytest.mark.kafka
def test_that_is_marked() -> None:
    pytest.skip("not here")

@pytest.mark.skipif(True, reason="no PostgreSQL server programs")
def test_that_needs_a_database() -> None: ...

def test_that_needs_something_else() -> None:
    pytest.skip("a file system of limited size cannot be mounted here")
"""


def _run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, required: str
) -> dict[str, int]:
    pytester.makeconftest((Path(__file__).parents[1] / "conftest.py").read_text("utf-8"))
    pytester.makeini("[pytest]\nmarkers = kafka: x\n")
    pytester.makepyfile(SKIPS)
    monkeypatch.setenv("TELEMETRY_REQUIRE", required)
    # In another process: what is required is read once, when the plug-in loads.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider").parseoutcomes()


def test_what_is_required_may_not_be_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(pytester, monkeypatch, "node,kafka,postgres") == {
        "failed": 2,
        "errors": 1,
        "skipped": 1,
    }
    assert _run(pytester, monkeypatch, "node") == {"failed": 1, "skipped": 3}


def test_what_is_not_required_may_be_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(pytester, monkeypatch, "") == {"skipped": 4}
