"""Any event is explained, completely; and what may not leave decides no letter of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from foreign_json import KINDS, events, fitting_events, rendered, schemas
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.cli.explain import _as_json, before, shown
from telemetry.cli.page import page
from telemetry.compare import compare
from telemetry.dialects.sample import Sample
from telemetry.edge import Item
from telemetry.errors import DecodeError
from telemetry.explain import Explainer, Explanation
from telemetry.policy import load_policy, schemas_dir
from telemetry.tolerant import strict_json

NOW = datetime(2026, 4, 1, tzinfo=UTC)


@cache
def explainer() -> Explainer:
    """Explain under the shipped policy with every kind switched on: most are off by default."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "policy"
        shutil.copytree(schemas_dir() / "policy", copy)
        text = (copy / "purposes.toml").read_text("utf-8")
        listed = next(line for line in text.split("\n") if '"error_event"' in line)
        others = [kind for kind in KINDS if kind not in ("analytics_event", "user_properties")]
        (copy / "purposes.toml").write_text(
            text.replace(listed, f"kinds = {json.dumps(others)}"), "utf-8"
        )
        recipients = (copy / "recipients.toml").read_text("utf-8")
        recipients = recipients.replace('"P13M"', '"P90D"').replace('"unknown"', '"P90D"')
        (copy / "recipients.toml").write_text(recipients, "utf-8")
        policy = load_policy(copy)
        policy.digest  # noqa: B018 - it is computed from the files, which go
        return Explainer(policy, schemas())


def explained(kind: str, raw: bytes) -> list[Explanation]:
    return explainer().explain(Sample(Item(kind, raw), strict_json(raw)), now=NOW)


def values(tree: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from values(value, (*path, str(name)))
    elif isinstance(tree, list) and tree:
        for number, value in enumerate(tree):
            yield from values(value, (*path, str(number)))
    elif tree not in (None, "", {}, []):
        yield ".".join(path)


def told(explanation: Explanation) -> str:
    """All that any output could show."""
    rows = [[before(row, reveals=False), shown(row.after)] for row in explanation.rows]
    return json.dumps([_as_json(explanation), page([explanation]), rows])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_event_is_explained_and_every_value_that_leaves_has_a_row(
    kind: str, data: st.DataObject
) -> None:
    _, raw = data.draw(events(kind))
    try:
        found = explained(kind, raw)
    except DecodeError:
        return
    for one in found:
        assert one.outcome == "delivered" or set(one.counts()) <= {"removed"}
        assert all(row.before is None for row in one.rows)
        there = [row.at for row in one.rows if row.after is not None]
        for leaf in values(one.payload):
            assert any(leaf == at or leaf.startswith(f"{at}.") for at in there), leaf
        assert {change.direction for change in compare(one, one)} <= {"EQUAL"}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_may_not_leave_decides_nothing_that_is_told(kind: str, data: st.DataObject) -> None:
    _, tree = data.draw(fitting_events(kind))
    one, other = (explained(kind, json.dumps(rendered(tree, number)).encode()) for number in (1, 2))
    assert list(map(told, one)) == list(map(told, other))
    assert "zqx" not in "".join(map(told, one)).lower()
