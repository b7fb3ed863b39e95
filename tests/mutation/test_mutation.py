"""Deleting or weakening any rule, treatment or annotation makes a check fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from telemetry.policy import schemas_dir
from tests.mutation.mutant import Mutant, judged
from tests.mutation.run import PARTS, all_mutants, equivalent, judge, part


@pytest.mark.parametrize("number", range(PARTS))
def test_no_rule_treatment_or_annotation_can_go_unnoticed(number: int) -> None:
    unsound = [str(verdict) for verdict in judge(part(number)) if not verdict.is_sound]
    assert not unsound, "\n".join(["Mutants that nothing explains:", *unsound])


def test_every_table_is_mutated_and_each_mutant_is_one() -> None:
    tables = Counter(mutant.table for mutant in all_mutants())
    files = {*schemas_dir().glob("*.avsc"), *(schemas_dir() / "policy").glob("*.toml")}
    assert set(tables) == {path.name for path in files}
    names = Counter(mutant.id for mutant in all_mutants())
    assert [name for name, count in names.items() if count > 1] == []


def test_what_changes_nothing_is_still_a_mutant() -> None:
    assert equivalent().keys() <= {mutant.id for mutant in all_mutants()}


def test_every_annotation_of_every_record_has_a_mutant() -> None:
    counts = Counter(one.table for one in all_mutants() if one.change == "annotation gone")
    for path in schemas_dir().glob("*.avsc"):
        assert counts[path.name] == path.read_text("utf-8").count('"privacy"'), path.name


def test_a_mutant_that_breaks_a_check_itself_is_no_kill() -> None:
    def broken() -> None:
        raise KeyError

    assert judged([("harmless", lambda: None)]) is None
    with pytest.raises(KeyError):
        judged([("broken", broken)])


def test_the_command_tells_of_one_mutant() -> None:
    name = Mutant("treatments.toml", "truncate_ip.profile", "ga").id
    found = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "tests.mutation", "--only", name, "--json"],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    told = json.loads(found.stdout)
    assert (found.returncode, told["id"], told["sound"]) == (0, name, True)
    assert told["killed_by"] == "addresses"
