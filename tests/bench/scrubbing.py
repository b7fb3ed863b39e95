"""Rows about scrubbing: bytes to bytes, against those who do less and those who do the same.

A row is a ratio of two times per event, both taken in one race. Of A the whole work on a batch of
64 events counts; `one by one` is beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

from scrubbers.detectors import SEPARATOR, Detectors
from scrubbers.engine import Outcome, scrub
from scrubbers.text import redact_text
from telemetry.policy import load_policy, schemas_dir
from telemetry.rules import Schemas
from tests.bench.invented import extended
from tests.bench.neighbours import NEIGHBOURS, Absent, NextDoor
from tests.bench.race import Contender, Local, race
from tests.bench.workloads import BATCH, HOSTILE, KINDS, build

__all__ = ["DETECTORS", "HOSTILE_BYTES", "ROWS", "WORKLOADS", "Ratio", "Scrubbing", "scrub_batch"]

DETECTORS: Final = 200
HOSTILE_BYTES: Final = 65_536
_PRESIDIO_EVENTS: Final = 4
WORKLOADS: Final = (
    "A clean", "A mixed", "A pii", "B8 clean", "B8 pii", "B40 clean", "B40 pii"
)  # fmt: skip


class Ratio(NamedTuple):
    """A row: how many times longer `over` takes than `under`, in one race.

    Attributes:
        name: As it stands in ``gates.toml`` and ``build/bench.json``.
        group: The race: a workload, ``gate`` or ``hostile``.
        over, under: Contenders of that race.
    """

    name: str
    group: str
    over: str
    under: str


def _rows() -> Iterator[Ratio]:
    for workload in WORKLOADS:
        analytics, clean = workload.startswith("A"), workload.endswith("clean")
        ours, more = ("batch", "batch 200") if analytics else ("scrub", "scrub 200")

        def row(over: str, workload: str = workload, ours: str = ours) -> Ratio:
            return Ratio(f"{over}/scrub {workload}", workload, over, ours)

        yield row("json")
        if analytics:
            yield Ratio(f"json/scrub {workload}, one by one", workload, "json", "scrub")
        yield Ratio(f"json/scrub {workload}, {DETECTORS} detectors", workload, "json", more)
        yield Ratio(f"{DETECTORS} detectors/shipped {workload}", workload, more, ours)
        yield row("orjson")
        yield row("relay 12 rules")
        yield row("relay @common")
        yield row("vrl")
        if analytics and clean:
            yield row("presidio")
    yield Ratio(f"{DETECTORS} detectors/shipped gate", "gate", "gate 200", "gate")
    yield Ratio(f"gate with {DETECTORS} detectors, MB/s", "gate", "microsecond", "gate 200")
    yield Ratio("hostile/clean per byte", "hostile", "worst", "clean")


ROWS: Final = tuple(_rows())


class Scrubbing:
    """All that is scrubbed, and by what. Tables are compiled when they are first needed."""

    def __init__(self, door: NextDoor) -> None:
        self._door = door
        self._policy = load_policy(schemas_dir() / "policy")
        self.absent: dict[str, str] = {}
        self.times_s: dict[str, dict[str, float]] = {}

    def figures(
        self,
        rows: Sequence[Ratio],
        *,
        repeats: int,
        turn_s: float,
        tell: Callable[[str], None] = lambda _name: None,
    ) -> dict[str, float]:
        """Race whoever stands in `rows`; give their figures.

        Rows whose neighbour is missing are left out; `absent` says which and why.
        """
        figures: dict[str, float] = {}
        for group in dict.fromkeys(row.group for row in rows):
            named = [row for row in rows if row.group == group]
            wanted = dict.fromkeys(who for row in named for who in (row.over, row.under))
            contenders: dict[str, Contender] = {}
            for name in wanted:
                tell(f"{group}: making {name}")
                try:
                    contenders.update(self._contenders(group, name))
                except Absent as error:
                    self.absent[name] = str(error)
            times = race(
                contenders,
                repeats=repeats,
                turn_s=turn_s,
                tell=lambda who, group=group: tell(f"{group}: {who}"),
            )
            if group == "hostile":
                worst = max((name for name in times if name != "clean"), key=times.__getitem__)
                times["worst"] = times[worst]
            self.times_s[group] = dict(times)
            times["microsecond"] = 1e-6
            figures |= {
                row.name: times[row.over] / times[row.under]
                for row in named
                if row.over in times and row.under in times
            }
        return figures

    def _contenders(self, group: str, name: str) -> Iterator[tuple[str, Contender]]:
        if group == "gate":
            if name != "microsecond":
                yield name, self._gate(self._more if name.endswith("200") else self._shipped)
        elif group == "hostile":
            if name == "clean":
                # Letters, digits and punctuation as they are; no anchor hits, as in most events.
                text = self._clean_text[:HOSTILE_BYTES]
                yield name, Local(redact_text, [text], each=len(text))
            else:
                for kind, unit in HOSTILE.items():
                    text = (unit * HOSTILE_BYTES)[:HOSTILE_BYTES]
                    yield kind, Local(redact_text, [text], each=len(text))
        else:
            yield name, self._worker(group, name)

    def _worker(self, workload: str, name: str) -> Contender:
        letter, _, sort = workload.partition(" ")
        events = build(letter, sort)
        if name in NEIGHBOURS:
            if name == "presidio":  # a hundredth of a second an event
                events = events[:_PRESIDIO_EVENTS]
            patterns = [row.detector.pattern for row in self._shipped.rows]
            return self._door.contender(name, events, patterns=patterns)
        if name == "json":
            return Local(lambda raw: json.dumps(json.loads(raw)), events)
        kind = KINDS[letter]
        schemas = self._schemas_more if name.endswith("200") else self._schemas
        if name.startswith("batch"):
            batches = [events[n : n + BATCH] for n in range(0, len(events), BATCH)]
            return Local(lambda raws: scrub_batch(schemas, kind, raws), batches, each=BATCH)
        # As the gateway does it: the rules are looked up for each event.
        return Local(lambda raw: scrub(raw, schemas.rules_for(kind, raw)), events)

    def _gate(self, detectors: Detectors) -> Contender:
        data = self._clean_text.encode()
        return Local(detectors.gate_bytes, [data], each=len(data))

    @cached_property
    def _shipped(self) -> Detectors:
        return self._policy.detectors

    @cached_property
    def _more(self) -> Detectors:
        return Detectors.compile(extended(self._policy.detector_table, DETECTORS))

    @cached_property
    def _schemas(self) -> Schemas:
        return Schemas(self._policy, self._shipped)

    @cached_property
    def _schemas_more(self) -> Schemas:
        return Schemas(self._policy, self._more)

    @cached_property
    def _clean_text(self) -> str:
        """Texts of clean events, scrubbed, in which no anchor of the larger table hits.

        Where one hits, the scan ends, and says nothing of its speed.
        """
        texts: list[str] = []
        for workload in ("B40", "B8", "A"):
            for raw in build(workload, "clean"):
                (outcome,) = scrub_batch(self._schemas, KINDS[workload], [raw])
                texts += _strings(json.loads(outcome.event))
        clean = [text for text in texts if not self._more.gate(text)]
        assert len(clean) > 0.9 * len(texts), "anchors hit clean text"
        joined = SEPARATOR.join(clean)
        assert len(joined) >= HOSTILE_BYTES
        # Fields side by side can be what a field alone is not.
        assert not self._more.gate(joined)
        return joined


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def scrub_batch(schemas: Schemas, kind: str, raws: Sequence[bytes]) -> list[Outcome]:
    """Scrub events that came in one request."""
    return [scrub(raw, schemas.rules_for(kind, raw)) for raw in raws]
