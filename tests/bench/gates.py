"""What each row must reach: ``gates.toml`` read, and figures held against it.

A row has a *gate*, the goal; a *moonshot* beyond it; and, only while the gate is not reached, a
*floor*: what must not get worse meanwhile. What a change must hold is its floor if it has one, else
its gate. So a gate that is reached once binds from the day its floor is deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

__all__ = ["GATES", "Gate", "Verdict", "judge", "load"]

GATES: Final = Path(__file__).with_name("gates.toml")

FAILED: Final = frozenset(("too slow", "not measured"))


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of ``gates.toml``.

    Attributes:
        gate: The goal. moonshot: What would be best in the field.
        floor: What must be held until the gate is reached.
        less: Less is better, as of memory and of times.
    """

    gate: float | None = None
    moonshot: float | None = None
    floor: float | None = None
    less: bool = False

    def holds(self, figure: float, bar: float | None) -> bool:
        """Tell whether a figure is at least as good as a bar; there is no bar at None."""
        return bar is None or (figure <= bar if self.less else figure >= bar)


class Verdict(NamedTuple):
    """How a row stands.

    Attributes:
        name: Its name. figure: What was measured, or None. gate: What is asked of it.
        state: ``moonshot`` or ``gate`` if that is reached, ``below gate`` if its floor is held,
            ``too slow`` or ``not measured`` if it fails, ``absent`` if a neighbour is missing,
            or empty if nothing is asked.
    """

    name: str
    figure: float | None
    gate: Gate
    state: str

    @property
    def failed(self) -> bool:
        """Tell whether a change may not land with this."""
        return self.state in FAILED


def load(path: Path = GATES) -> dict[str, Gate]:
    """Read the gates.

    Raises:
        ValueError: A row says what cannot be meant. The message names it.
    """
    rows = msgspec.toml.decode(path.read_bytes(), type=dict[str, Gate])
    for name, row in rows.items():
        bars = [bar for bar in (row.floor, row.gate, row.moonshot) if bar is not None]
        if not bars or any(not isfinite(bar) or bar <= 0 for bar in bars):
            raise ValueError(f"{name}: needs a gate or a floor, above zero.")
        if row.floor is None and row.gate is None:
            raise ValueError(f"{name}: has a moonshot, and nothing that must be held.")
        if bars != sorted(bars, reverse=row.less):
            raise ValueError(f"{name}: floor, gate and moonshot must each ask for more.")
        if row.floor is not None and row.floor == row.gate:
            raise ValueError(f"{name}: its floor is its gate. Delete the floor.")
    return rows


def judge(
    figures: Mapping[str, float], gates: Mapping[str, Gate], *, excused: Collection[str] = ()
) -> list[Verdict]:
    """Hold figures against gates, in the order in which they were measured.

    Args:
        figures: By row.
        gates: By row; a row without one is only shown.
        excused: Rows that nobody could measure here.
    """
    verdicts = []
    for name, figure in figures.items():
        row = gates.get(name, Gate())
        if not row.holds(figure, row.floor if row.floor is not None else row.gate):
            state = "too slow"
        elif row.gate is None:
            state = ""
        elif not row.holds(figure, row.gate):
            state = "below gate"
        elif row.moonshot is not None and row.holds(figure, row.moonshot):
            state = "moonshot"
        else:
            state = "gate"
        verdicts.append(Verdict(name, figure, row, state))
    for name in gates.keys() - figures.keys():
        state = "absent" if name in excused else "not measured"
        verdicts.append(Verdict(name, None, gates[name], state))
    return verdicts
