"""Who is faster: works that take turns, so that whatever slows the machine slows all of them.

Time is processor time of the process that does the work: what others use of the machine counts only
as far as it empties our caches. Of each work the fastest turn counts, because nothing makes a
program faster than it is.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Contender", "Local", "race"]


class Contender(Protocol):
    """Somebody who works through the same events, here or in another process.

    Attributes:
        events: How many events are worked through in a round.
    """

    events: int

    def turn(self, rounds: int) -> float:
        """Work through all events `rounds` times; give the seconds of processor time it took."""


class Local:
    """A contender in this process.

    Args:
        work: Takes one input.
        inputs: What is worked through in a round.
        each: Events in an input.
        fresh: Makes the inputs anew before each round, untimed: for work that changes them.
    """

    def __init__(
        self,
        work: Callable[[Any], object],
        inputs: Sequence[Any],
        *,
        each: int = 1,
        fresh: Callable[[], Sequence[Any]] | None = None,
    ) -> None:
        self._work = work
        self._inputs = inputs
        self._fresh = fresh
        self.events = len(inputs) * each

    def turn(self, rounds: int) -> float:
        """Work; see `Contender`."""
        work, inputs, took_s = self._work, self._inputs, 0.0
        if self._fresh is None:
            began = time.process_time()
            for _ in range(rounds):
                for item in inputs:
                    work(item)
            return time.process_time() - began
        for _ in range(rounds):
            inputs = self._fresh()
            began = time.process_time()
            for item in inputs:
                work(item)
            took_s += time.process_time() - began
        return took_s


def race(
    contenders: Mapping[str, Contender],
    *,
    repeats: int,
    turn_s: float,
    tell: Callable[[str], None] = lambda _name: None,
) -> dict[str, float]:
    """Let all work in turns; give the seconds per event of the fastest turn of each.

    Args:
        contenders: By name.
        repeats: Turns of each, not counting a first one that warms it up.
        turn_s: About how many seconds a turn lasts.
        tell: Is told who works next.
    """
    rounds: dict[str, int] = {}
    for name, contender in contenders.items():
        tell(name)
        contender.turn(1)
        rounds[name] = max(1, round(turn_s / max(contender.turn(1), 1e-6)))
    # What was built for the other contenders is no work of the one whose turn it is.
    gc.collect()
    gc.freeze()
    best = dict.fromkeys(contenders, float("inf"))
    try:
        for number in range(repeats):
            for name, contender in contenders.items():
                tell(f"{name}, {number + 1} of {repeats}")
                took_s = contender.turn(rounds[name]) / rounds[name] / contender.events
                best[name] = min(best[name], took_s)
    finally:
        gc.unfreeze()
    return best
