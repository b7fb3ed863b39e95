"""Every input that a fuzzer ever failed on, and every seed, fulfils its property today."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.properties import PROPERTIES
from tests.fuzz.seeds import seeds

FOUND = sorted(path for path in (Path(__file__).parent / "regressions").glob("*/*"))
LIMIT_S = 0.5
"""Processor time of one input. Each property runs what it tests several times over."""


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_a_fuzzer_once_found_is_right_now(path: Path) -> None:
    check, data = PROPERTIES[path.parent.name], path.read_bytes()
    began = time.process_time()
    check(data)
    assert time.process_time() - began < LIMIT_S


@pytest.mark.parametrize("target", PROPERTIES)
def test_what_fuzzers_start_from_is_right(target: str) -> None:
    started = list(seeds(target))
    assert len(started) > 20
    for data in started:
        PROPERTIES[target](data)


def test_every_folder_of_regressions_belongs_to_a_target() -> None:
    assert {path.parent.name for path in FOUND} <= set(PROPERTIES)
