"""Speed of scrubbing as ratios taken in one run.

What is compared runs in turns, so that another job on the machine slows all of them; of each the
fastest turn counts. A ratio says how many times longer a plain JSON round trip of the same bytes
takes than our whole work on them; above 1, scrubbing costs less than reading and writing JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import msgspec

from scrubbers.detectors import Detectors
from scrubbers.engine import SEPARATOR, Ledger, rescrub, scrub
from telemetry.policy import load_policy, schemas_dir
from telemetry.rules import Schemas
from tests.bench.workloads import WORKLOADS, build

__all__ = ["Row", "json_round_trip", "measure", "race"]

KINDS = {"A": "analytics_event", "B8": "error_event", "B40": "error_event"}


class Row(NamedTuple):
    """What one workload took.

    Attributes:
        name: ``A_clean``. size: Bytes of an event, on average.
        times_s: Seconds per event, by contender.
        text: Characters of free text per event.
        gate_s: Seconds per event to scan them; infinite if an anchor hits, since the scan then
            ends there and says nothing about its speed.
    """

    name: str
    size: float
    times_s: dict[str, float]
    text: float
    gate_s: float

    @property
    def ratio(self) -> float:
        """How many times longer a JSON round trip takes than a scrub."""
        return self.times_s["json"] / self.times_s["scrub"]


def json_round_trip(raw: bytes) -> str:
    """Read and write with the standard library: the yardstick."""
    return json.dumps(json.loads(raw))


def race(
    contenders: dict[str, Callable[[Any], object]],
    inputs: dict[str, Sequence[Any]],
    *,
    repeats: int,
    turn_s: float,
) -> dict[str, float]:
    """Let each work through its inputs, in turns; give the fastest seconds per input.

    Args:
        contenders: By name.
        inputs: What each works through.
        repeats: Turns of each.
        turn_s: About how many seconds a turn lasts.
    """
    rounds: dict[str, int] = {}
    for name, function in contenders.items():
        began = time.perf_counter()
        for item in inputs[name]:
            function(item)
        rounds[name] = max(1, round(turn_s / (time.perf_counter() - began)))
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(repeats):
        for name, function in contenders.items():
            items, many = inputs[name], rounds[name]
            began = time.perf_counter()
            for _ in range(many):
                for item in items:
                    function(item)
            took = (time.perf_counter() - began) / many / len(items)
            best[name] = min(best[name], took)
    return best


def measure(*, repeats: int, turn_s: float) -> list[Row]:
    """Measure every workload, clean and with personal data."""
    policy = load_policy(schemas_dir() / "policy")
    detectors = Detectors.compile(policy.detector_table)
    schemas = Schemas(policy, detectors)
    orjson = import_module("orjson") if find_spec("orjson") else None
    rows = []
    for workload in WORKLOADS:
        for sort in ("clean", "pii"):
            events = build(workload, pii=sort == "pii")
            kind = KINDS[workload]
            rules = schemas.rules_for(kind, events[0])
            texts = [_texts(raw, rules) for raw in events]
            contracts = [scrub(raw, rules).event for raw in events]
            contenders: dict[str, Callable[[Any], object]] = {
                "json": json_round_trip,
                # As the gateway does it: the rules are looked up for each event.
                "scrub": lambda raw, kind=kind: scrub(raw, schemas.rules_for(kind, raw)),
                "rescrub": lambda body, rules=rules: rescrub(body, rules),
                "gate": detectors.gate,
                "msgspec": lambda raw: msgspec.json.encode(msgspec.json.decode(raw)),
            }
            inputs: dict[str, Sequence[Any]] = dict.fromkeys(("json", "scrub", "msgspec"), events)
            inputs |= {"rescrub": contracts, "gate": texts}
            if orjson is not None:
                contenders["orjson"] = lambda raw: orjson.dumps(orjson.loads(raw))
                inputs["orjson"] = events
            times = race(contenders, inputs, repeats=repeats, turn_s=turn_s)
            rows.append(
                Row(
                    name=f"{workload}_{sort}",
                    size=sum(map(len, events)) / len(events),
                    gate_s=float("inf") if any(map(detectors.gate, texts)) else times["gate"],
                    times_s={name: taken for name, taken in times.items() if name != "gate"},
                    text=sum(map(len, texts)) / len(texts),
                )
            )
    return rows


def _texts(raw: bytes, rules: Any) -> str:
    """All free text of an event as the gate sees it."""
    ledger = Ledger(rules.treatments)
    rules.rewrite(rules.decode(raw, ledger), (), ledger)
    return SEPARATOR.join([*ledger.texts, *ledger.statics])
