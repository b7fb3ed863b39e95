"""A missing tool skips, loudly; where it is required, it fails."""

from __future__ import annotations

import pytest

from tests.conftest import require


def test_a_tool_that_is_there_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELEMETRY_REQUIRE", "node")
    require("node")


@pytest.mark.parametrize("wanted", ["", "kafka", "kafka,nodes"])
def test_a_missing_tool_skips_and_says_why(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setenv("TELEMETRY_REQUIRE", wanted)
    with pytest.raises(pytest.skip.Exception, match="needs node: npm is absent"):
        require("node", "npm is absent")


@pytest.mark.parametrize("wanted", ["node", "kafka, node"])
def test_a_missing_tool_fails_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("TELEMETRY_REQUIRE", wanted)
    with pytest.raises(pytest.fail.Exception, match="npm is absent"):
        require("node", "npm is absent")
