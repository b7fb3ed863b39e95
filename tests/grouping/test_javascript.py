"""JavaScript errors of the real clients: the same groups, and source maps still join."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from telemetry.dialects.sentry import parse_envelope
from telemetry.testing import Canaries
from tests.conftest import require
from tests.grouping.grouping import grouping_hash, grouping_inputs
from tests.grouping.raised import person
from tests.grouping.test_python import all_frames, delivered, without_stack
from tests.integration.test_gateway_clients import installed

Event = dict[str, Any]
HERE = Path(__file__).with_name("node")
KINDS = 10
DEBUG_ID = "0f5c1b8e-7a3d-4c26-9e41-5b8d2a6c7f10"
WRITTEN = "written"
# Where the bundle says it lies, and the way its errors take: 60 errors, nobody's data in a path.
BUNDLES = (
    ("node.js", WRITTEN, "caught"),
    ("node.js", "/srv/shop/dist/app.js", "awaited"),
    ("node.js", "file:///srv/shop/dist/app.mjs", "timer"),
    ("browser.js", "https://app.example.com/assets/app-4f3a2b1c.js", "caught"),
    ("browser.js", "https://cdn.example.net/shop/3.1.0/main.min.js", "awaited"),
    ("browser.js", "app:///assets/index.js", "timer"),
)
# Paths that name somebody: {} stands for whom.
PERSONAL = (
    ("node.js", "/home/{}/shop/dist/app.js"),
    ("node.js", "/Users/{}/shop/.next/server/app.js"),
    ("browser.js", "file:///C:/Users/{}/AppData/Local/shop/app.js"),
    ("browser.js", "https://app.example.com/assets/app.js?user={}@example.org&v=3"),
)

pytestmark = [pytest.mark.node, pytest.mark.xdist_group("node")]


@pytest.fixture(scope="module")
def node() -> str:
    require("node", installed(HERE))
    return shutil.which("node") or ""


@cache
def captured(node: str, script: str, file: str, way: str, who: int) -> tuple[bytes, ...]:
    """Run the ten errors in a real client; give the bytes of its events."""
    write = file.endswith("/written.js")
    done = subprocess.run(  # noqa: S603 - our own scripts
        [node, script, file, way, DEBUG_ID, json.dumps(dict(person(who))), *["write"][:write]],
        cwd=HERE,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    events = tuple(
        item.raw
        for line in done.stdout.splitlines()
        for item in parse_envelope(base64.b64decode(line), {"error_event"}).items
        if item.kind == "error_event"
    )
    assert len(events) == KINDS
    return events


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    folder = tmp_path_factory.mktemp("dist")
    return {file: file for _, file, _ in BUNDLES} | {WRITTEN: str(folder / "written.js")}


def join(event: Event) -> list[list[bool]]:
    """Tell for each debug image which frames belong to it: what a source map is found by."""
    return [
        [
            frame.get("abs_path", frame["filename"]) == image["code_file"]
            for frame in all_frames(event)
        ]
        for image in event["debug_meta"]["images"]
    ]


def all_ids(event: Event) -> list[str]:
    return [image["debug_id"] for image in event["debug_meta"]["images"]]


def event_hashes(raws: tuple[bytes, ...]) -> list[str]:
    return [grouping_hash(delivered(raw)) for raw in raws]


@pytest.mark.parametrize(("script", "file", "way"), BUNDLES)
def test_an_error_is_grouped_by_the_same_before_and_after(
    node: str, places: Mapping[str, str], script: str, file: str, way: str
) -> None:
    raws = captured(node, script, places[file], way, 1)
    for raw in raws:
        before, after = json.loads(raw), delivered(raw)
        assert grouping_inputs(after) == grouping_inputs(before)
        assert grouping_hash(after) == grouping_hash(before)
    # What is thrown and is no Error has the stack of the capture: text and object are one group.
    assert len(set(event_hashes(raws))) == KINDS - 1
    if file == WRITTEN:
        assert any(frame.get("context_line") for frame in all_frames(json.loads(raws[0])))


@pytest.mark.parametrize(("script", "file", "way"), BUNDLES)
def test_one_error_of_many_people_is_one_issue_even_without_a_stack(
    node: str, places: Mapping[str, str], script: str, file: str, way: str
) -> None:
    people = [captured(node, script, places[file], way, who) for who in (1, 2)]
    hashes = [event_hashes(raws) for raws in people]
    bare = [event_hashes(tuple(map(without_stack, raws))) for raws in people]
    assert sorted(hashes[0]) == sorted(hashes[1])
    assert sorted(bare[0]) == sorted(bare[1])
    for who, raws in zip((1, 2), people, strict=True):
        assert Canaries(who).found_in(b"".join(raws)) != []
        arrived = json.dumps([delivered(raw) for raw in raws]).encode()
        assert Canaries(who).found_in(arrived) == []


@pytest.mark.parametrize(("script", "file", "way"), BUNDLES)
def test_source_maps_join_the_same_frames_before_and_after(
    node: str, places: Mapping[str, str], script: str, file: str, way: str
) -> None:
    for raw in captured(node, script, places[file], way, 1):
        before, after = json.loads(raw), delivered(raw)
        assert any(map(any, join(before)))
        assert join(after) == join(before)
        assert all_ids(after) == all_ids(before) == [DEBUG_ID]
        for old, new in zip(all_frames(before), all_frames(after), strict=True):
            for name in ("lineno", "colno", "function", "in_app"):
                assert new.get(name) == old.get(name)


@pytest.mark.parametrize(("script", "file"), PERSONAL)
def test_a_path_that_names_somebody_still_joins_and_makes_one_issue(
    node: str, script: str, file: str
) -> None:
    hashes = []
    for whose in ("jane", "erika"):
        raws = captured(node, script, file.format(whose), "caught", 1)
        for raw in raws:
            before, after = json.loads(raw), delivered(raw)
            assert any(map(any, join(before)))
            assert join(after) == join(before)
            assert all_ids(after) == [DEBUG_ID]
            assert whose not in json.dumps(after)
        hashes.append(sorted(event_hashes(raws)))
    assert hashes[0] == hashes[1]
