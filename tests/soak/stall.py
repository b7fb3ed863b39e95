"""Does a Heap that stalls delay Sentry? The same load twice, in short blocks that take turns.

In each block the same clients send analytics and errors at the same rate, one error a request, and
the time from the error's request to its arrival at Sentry is taken. In every second block Heap
swallows what it is sent and answers nothing. Blocks alternate (and which comes first, too), so that
whatever else the machine does meanwhile meets both alike. Compared are the p99 of all errors with
Heap stalled and with Heap well; how far the ratio of two such p99 wanders by chance alone is drawn
from the same blocks, by putting them together anew (bootstrap over blocks, 90 %).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.soak.round import Round

__all__ = ["BOUND", "Compared", "compare"]

BOUND: Final = 1.10
"""A stalled Heap may make Sentry's p99 longer by a tenth."""
_BLOCK_S: Final = 2.0
_REST_S: Final = 0.3
_EVENTS_PER_S: Final = 60
_DRAWS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Milliseconds from a request to the arrival at Sentry, and their ratios stalled / well.

    Attributes:
        low, high: Between which 90 % of the ratios of p99 lie when blocks are drawn anew.
        wrong: What does not hold: the ratio is above its bound beyond chance, or errors are lost.
    """

    blocks: int
    errors: int
    well_p50_ms: float
    well_p99_ms: float
    stalled_p50_ms: float
    stalled_p99_ms: float
    ratio_p99: float
    low: float
    high: float
    wrong: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Give the figures."""
        return {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "wrong"}


class _Comparison(Round):
    """A round whose steps are blocks."""

    blocks: list[tuple[bool, list[float]]]

    def _fault(self) -> None:
        self.blocks = []
        self._block(stalled=False)  # everything is warm after this one
        self.blocks.clear()
        end, turn = time.monotonic() + self.seconds, 0
        while time.monotonic() < end and not self.report.wrong:
            for stalled in (False, True) if turn % 2 else (True, False):
                self._block(stalled=stalled)
            turn += 1

    def _block(self, *, stalled: bool) -> None:
        if stalled:
            self.to_heap.spoil("half_open")
        first, begun = self.client.number, time.monotonic()
        while (passed := time.monotonic() - begun) < _BLOCK_S:
            self.client.allowed = first + int(passed * _EVENTS_PER_S)
            time.sleep(0.005)
        last = self.client.number
        wanted = [n for n in range(first, last) if self.events.kind(n) == "error"]
        wanted = [n for n in wanted if not self.events.marked(n)]
        self._wait(lambda: all(n in self.sentry.first_at for n in wanted), 20.0)
        if missing := [n for n in wanted if n not in self.sentry.first_at]:
            self.wrong(f"{len(missing)} errors did not arrive within 20 s")
        sent_at = self.client.sent.sent_at
        took = [self.sentry.first_at[n] - sent_at[n] for n in wanted if n in self.sentry.first_at]
        self.blocks.append((stalled, took))
        self.to_heap.heal()
        # What Heap has missed reaches it before the next block begins, or would fall into it.
        self._wait(lambda: not self._backlog(), 30.0)
        time.sleep(_REST_S)


def compare(folder: Path, *, seconds: float = 60.0) -> Compared:
    """Measure for about so long."""
    shutil.rmtree(folder, ignore_errors=True)
    here = _Comparison(0, 0, folder, kills=0, seconds=seconds, single=True)
    report = here.run()
    wrong = [f"stalled Heap: {what}" for what in report.wrong]
    well = [took for stalled, took in here.blocks if not stalled]
    stalled = [took for is_stalled, took in here.blocks if is_stalled]
    draw = Random(0)  # noqa: S311 - reproducible, no secret
    ratios = sorted(
        _p99(draw.choices(stalled, k=len(stalled))) / _p99(draw.choices(well, k=len(well)))
        for _ in range(_DRAWS)
    )
    low, high = ratios[int(_DRAWS * 0.05)], ratios[int(_DRAWS * 0.95)]
    if low > BOUND:
        wrong.append(f"a stalled Heap makes Sentry's p99 at least {low:.2f} times as long")
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return Compared(
        blocks=len(here.blocks),
        errors=sum(len(took) for _, took in here.blocks),
        well_p50_ms=_ms(well, 0.5),
        well_p99_ms=_ms(well, 0.99),
        stalled_p50_ms=_ms(stalled, 0.5),
        stalled_p99_ms=_ms(stalled, 0.99),
        ratio_p99=round(_p99(stalled) / _p99(well), 3),
        low=round(low, 3),
        high=round(high, 3),
        wrong=wrong,
    )


def _at(blocks: Sequence[Sequence[float]], share: float) -> float:
    values = sorted(value for block in blocks for value in block)
    return values[min(int(len(values) * share), len(values) - 1)]


def _p99(blocks: Sequence[Sequence[float]]) -> float:
    return _at(blocks, 0.99)


def _ms(blocks: Sequence[Sequence[float]], share: float) -> float:
    return round(1000 * _at(blocks, share), 1)
