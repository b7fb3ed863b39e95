"""The catalogue of faults in docs/reliability.md: complete, and its tests exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "docs" / "reliability.md"
FAULTS = 86


class Row(NamedTuple):
    number: int
    fault: str
    happens: str
    result: str
    tests: list[str]
    reason: str


def rows() -> list[Row]:
    text = PAPER.read_text("utf-8")
    section = text.partition("\n## The 86 faults\n")[2].partition("\n## ")[0]
    found = []
    for line in section.splitlines():
        if not re.match(r"\| \d", line):
            continue
        number, fault, happens, result, shown = (
            cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]
        )
        tests = re.findall(r"`([\w./]+\.py::\w+)`", shown)
        reason = re.sub(r"`[\w./]+\.py::\w+`", "", shown).strip(" —")
        found.append(Row(int(number), fault, happens, result, tests, reason))
    return found


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the tests of a file, without running it."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_fault_has_one_row() -> None:
    assert [row.number for row in rows()] == list(range(1, FAULTS + 1))
    for row in rows():
        assert len(row.fault) > 2, row.number
        assert len(row.happens) > 2, row.number


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.number:02}")
def test_a_row_names_tests_that_exist_or_says_why_there_is_none(row: Row) -> None:
    assert row.result in {"holds", "in part", "not tested"}
    assert bool(row.tests) is (row.result != "not tested")
    assert (len(row.reason.split()) >= 4) is (row.result != "holds")
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name.startswith("test_")
        assert (ROOT / path).is_file(), test
        assert name in names_in(path), test
        # A test that is collected: of a module that pytest takes, or a public suite it inherits.
        assert Path(path).name.startswith("test_") or path.startswith("telemetry/testing/")


def test_what_holds_in_part_only_is_not_most_of_it() -> None:
    results = [row.result for row in rows()]
    assert results.count("not tested") <= 2
    assert results.count("holds") >= 60
