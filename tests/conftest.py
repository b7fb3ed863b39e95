"""What all tests share: how a test says which tool of the outside it needs."""

from __future__ import annotations

import os

import pytest


def require(tool: str, missing: str = "") -> None:
    """Go on only if `tool` is there.

    Args:
        tool: The word by which ``TELEMETRY_REQUIRE`` (a list with commas) names it.
        missing: What is not there; empty if all is.

    A missing tool skips the test, and says so; where ``TELEMETRY_REQUIRE`` names the tool, as in
    continuous integration, it fails it instead: a skip that nobody reads proves nothing.
    """
    if not missing:
        return
    wanted = {word.strip() for word in os.environ.get("TELEMETRY_REQUIRE", "").split(",")}
    if tool in wanted:
        pytest.fail(f"{tool} is required here (TELEMETRY_REQUIRE) but {missing}", pytrace=False)
    pytest.skip(f"needs {tool}: {missing}")
