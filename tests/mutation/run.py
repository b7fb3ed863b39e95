"""All mutants, who judges them, and which are known to change nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from tests.mutation import detectors, policies, records
from tests.mutation.mutant import Killed, Mutant

__all__ = ["PARTS", "Verdict", "all_mutants", "equivalent", "judge", "part"]

PARTS: Final = 48
"""Into how many tests a run is cut: enough that two processes end together."""
_EQUIVALENT: Final = Path(__file__).with_name("equivalent.toml")


class Verdict(NamedTuple):
    """What became of one mutant.

    Attributes:
        mutant: Which one.
        killed: Why it does not survive; None if it does.
        reason: Why it may survive: it changes nothing. Empty if it may not.
    """

    mutant: Mutant
    killed: Killed | None
    reason: str

    @property
    def is_sound(self) -> bool:
        """Whether it is killed; or survives, and it is known why."""
        return (self.killed is None) is bool(self.reason)

    def __str__(self) -> str:
        if self.killed:
            stale = ", but stands in equivalent.toml" if self.reason else ""
            return f"{self.mutant.id}: {self.killed.check} ({self.killed.how}){stale}"
        return f"{self.mutant.id}: {self.reason or 'SURVIVES: no check fails without it'}"


@cache
def all_mutants() -> Sequence[Mutant]:
    """List the mutants of all tables, in the order of files and places."""
    return (*records.mutants(), *policies.mutants(), *detectors.mutants())


def part(number: int) -> Sequence[Mutant]:
    """Give one of `PARTS` parts, each about as much work as another."""
    return all_mutants()[number::PARTS]


@cache
def equivalent() -> Mapping[str, str]:
    """Read which mutants change nothing, with the reason.

    Raises:
        ValueError: One is named twice, or without a reason.
    """
    found: dict[str, str] = {}
    for entry in tomllib.loads(_EQUIVALENT.read_text("utf-8"))["equivalent"]:
        for name in entry["mutants"]:
            if name in found or not entry["reason"].strip():
                raise ValueError(f"{name}: named twice, or without a reason")
            found[name] = entry["reason"]
    return found


def _judge_of(mutant: Mutant) -> Callable[[Mutant], Killed | None]:
    if mutant.table.endswith(".avsc"):
        return records.judge
    return detectors.judge if mutant.table == "detectors.toml" else policies.judge


def judge(mutants: Iterable[Mutant]) -> Iterator[Verdict]:
    """Judge mutants one after the other."""
    for mutant in mutants:
        yield Verdict(mutant, _judge_of(mutant)(mutant), equivalent().get(mutant.id, ""))
