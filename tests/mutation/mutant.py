"""What a mutant is, and what kills one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from telemetry.errors import TelemetryError

__all__ = ["Killed", "Mutant", "judged"]


class Mutant(NamedTuple):
    """One change to one place of one table.

    Attributes:
        table: File under ``schemas/`` or ``schemas/policy/``.
        place: The field or key that is changed, by its names.
        change: What is done to it.
    """

    table: str
    place: str
    change: str

    @property
    def id(self) -> str:
        """Name it in one line, for people and for ``--only``."""
        return f"{self.table} {self.place}: {self.change}"


class Killed(NamedTuple):
    """Why a mutant does not survive.

    Attributes:
        check: The check that fails; or that the policy is refused when it is loaded.
        how: What it says.
    """

    check: str
    how: str


def judged(checks: Iterable[tuple[str, Callable[[], object]]]) -> Killed | None:
    """Run checks in order until one fails. Gives None if none does: the mutant survives.

    Only an assertion that fails and an error of ours count. What breaks in another way is a
    mistake in a mutant, not a finding, and is raised.
    """
    for name, check in checks:
        try:
            check()
        except (AssertionError, TelemetryError, ValueError) as error:
            return Killed(name, f"{type(error).__name__}: {error}"[:200])
    return None
