"""Mutants of ``schemas/*.avsc``: one annotation gone, or one treatment weaker."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from telemetry.policy import Policy, schemas_dir
from telemetry.rules import CompiledRules, Schemas
from telemetry.schema import Record, load_records
from tests.checks import shipped
from tests.checks.whole import check_kept, check_people, check_settled
from tests.mutation.mutant import Killed, Mutant, judged

__all__ = ["judge", "mutants"]

_PASSES: Final = {"treatment": "keep", "format": "declared"}
"""The weakest text that may be declared: any text passes."""
_WEAKER: Final[Mapping[str, tuple[str, ...]]] = {
    "strip": ("redact_text", "passes"),
    "pseudonymize": ("strip", "passes"),
    "truncate_ip": ("redact_text", "passes"),
    "reduce_user_agent": ("redact_text", "passes"),
    "reduce_url": ("redact_text", "passes"),
    "coarsen_time": ("redact_text", "passes"),
    "redact_text": ("passes",),
    "shape": ("redact_text",),
    "keep": ("passes",),
}
_BEYOND: Final = ("accept", "json")
"""Keys beside ``privacy`` that decide what is read."""


def mutants() -> Iterator[Mutant]:
    """Give each annotation's mutants: without it, kept as it is, one step weaker, less one key."""
    for path in sorted(schemas_dir().glob("*.avsc")):
        for way, entry in _fields(json.loads(path.read_text("utf-8"))):
            for change in _changes(entry, is_batch=path.stem == "batch"):
                yield Mutant(path.name, ".".join(way), change)


def _changes(entry: Mapping[str, Any], *, is_batch: bool) -> Iterator[str]:
    note = entry["privacy"]
    yield "annotation gone"
    if note["treatment"] != "keep":
        yield "keep"
    if is_batch:
        return  # Avro's own bytes: nothing in it is scrubbed
    avro = _type(entry)
    if avro == "string" or note["treatment"] != "keep":
        for step in _WEAKER[note["treatment"]]:
            # A list or map of texts has no weaker form than being searched.
            closed = avro in ("string", "null") and note.get("format") != "declared"
            if step != "passes" or closed:
                yield step
    yield from (f"{key} gone" for key in note if key not in ("class", "treatment"))
    yield from (f"{key} gone" for key in _BEYOND if key in entry)


def _type(entry: Mapping[str, Any]) -> Any:
    avro = entry["type"]
    found = [one for one in avro if one != "null"] if isinstance(avro, list) else [avro]
    return found[0] if isinstance(found[0], str) else found[0]["type"]


def _fields(
    record: dict[str, Any], way: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for entry in record["fields"]:
        here = (*way, entry["name"])
        yield here, entry
        for avro in entry["type"] if isinstance(entry["type"], list) else [entry["type"]]:
            below = avro["items"] if isinstance(avro, dict) and "items" in avro else avro
            if isinstance(below, dict) and "fields" in below:
                yield from _fields(below, here)


def _mutated(mutant: Mutant) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(_text(mutant.table))
    entry = next(entry for way, entry in _fields(record) if ".".join(way) == mutant.place)
    note, change = entry["privacy"], mutant.change
    if change == "annotation gone":
        del entry["privacy"]
    elif change.endswith(" gone"):
        key = change.removesuffix(" gone")
        del (note if key in note else entry)[key]
    elif change == "keep":
        note["treatment"] = "keep"
    elif change == "strip":
        note["treatment"] = "strip"
        note.pop("kind")
    else:
        was = note["treatment"]
        for key in ("known", "kind", "keys", "keep_path", "format"):
            note.pop(key, None)
        note.update(_PASSES if change == "passes" else {"treatment": change})
        if was == "shape":
            entry["type"] = ["null", {"type": "map", "values": "string"}]
        elif _type(entry) == "null":
            entry["type"] = ["null", "string"]
    return record


@cache
def _text(name: str) -> str:
    return (schemas_dir() / name).read_text("utf-8")


@cache
def _slim(kind: str) -> Policy:
    """The shipped policy, as far as it is about one kind: the other records are not compiled."""
    policy = copy.copy(shipped.policy())
    policy.purposes = {}
    if '"keys"' not in _text(f"{kind}.avsc"):
        policy.treatments = msgspec.structs.replace(policy.treatments, shape={})
    return policy


def _load(kind: str, record: Mapping[str, Any]) -> Mapping[str, Record]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{kind}.avsc").write_text(json.dumps(record), "utf-8")
        return load_records(folder)


def _rules(kind: str, record: Mapping[str, Any]) -> CompiledRules:
    schemas = Schemas(_slim(kind), shipped.detectors(), records=_load(kind, record))
    return schemas.rules_for(kind, b'{"event":"page viewed"}')


@cache
def _stands_alone(kind: str, key: str) -> bool:
    """Tell whether the shipped rules show nobody of a key alone: others may tell what is known."""
    try:
        check_people(shipped.rules_of(kind), kind, only=key)
    except (AssertionError, KeyError):
        return False
    return True


def judge(mutant: Mutant) -> Killed | None:
    """Load a mutant and run the checks until one fails."""
    kind = Path(mutant.table).stem
    if kind == "batch":
        return judged([("refused at the start", lambda: _load(kind, _mutated(mutant)))])
    rules: list[CompiledRules] = []
    key = mutant.place.partition(".")[0]
    alone = [("tells people apart", lambda: check_people(rules[0], kind, only=key))]
    checks: list[tuple[str, Callable[[], object]]] = [
        ("refused at the start", lambda: rules.append(_rules(kind, _mutated(mutant)))),
        *(alone if _stands_alone(kind, key) else ()),  # the quickest that can see it
        ("tells people apart", lambda: check_people(rules[0], kind)),
        ("keeps something else", lambda: check_kept(rules[0], kind)),
        ("does not settle", lambda: check_settled(rules[0], kind)),
    ]
    return judged(checks)
