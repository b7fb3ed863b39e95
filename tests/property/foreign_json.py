"""Strategies: events as foreign clients might send them, made from the records themselves.

A record decides what is generated, so a field that is added to a schema is attacked the same day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hypothesis import strategies as st

from scrubbers.detectors import Detectors
from telemetry.policy import load_policy
from telemetry.rules import CompiledRules, Schemas
from telemetry.schema import Field, Record, load_records

KINDS = tuple(load_records())

_WORDS = st.sampled_from(
    [
        "row not found", "login of jane@example.com failed", "call +49 30 23125 042", "200",
        "password=hunter2", "from 203.0.113.77 and ::ffff:203.0.113.9", "/users/jane/boards/4711",
        "https://app.example.com/u/jane?mail=jane@example.com#x", "C:\\Users\\jane\\app.py",
        "<email:1> and <ip>", "<redacted>", "Jördis Ünal", "\u202ejane\u2066@example.com", "",
        "3fa85f64-5717-4562-b3fc-2c963f66afa6", "2026-03-31T09:15:42.123+02:00", "1774948542.5",
        "\ud800", "nul\x00nul", "a\x1eb@example.com\x1ec",
        "\uff4a\uff41\uff4e\uff45\uff20example.com", "error", "true",
        "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0", "{{auto}}", "-1",
        "DE89370400440532013000", "2001:db8::1", "10.0.0.7", "GET", "high", "999999999999999999",
    ]
)  # fmt: skip
TEXTS = st.one_of(_WORDS, _WORDS, st.text(max_size=40), st.lists(_WORDS, max_size=4).map(" ".join))
PLAIN = st.text("abcdefghij klmnop,.-", max_size=30)
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-5, 300),
    st.floats(),
    st.sampled_from([10**400, 1e308, -0.0, 1774948542, 1774948542.123456, 2**31, 3.0]),
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)


@cache
def schemas() -> Schemas:
    policy = load_policy()
    return Schemas(policy, Detectors.compile(policy.detector_table))


def variants(kind: str) -> dict[str, CompiledRules]:
    """Rules of a kind by the name of their event; under the empty name if they have none."""
    found = schemas()
    return found._by_event.get(kind) or {"": found.rules_for(kind, b"")}


@dataclass(eq=False)
class Hidden:
    """A value that may not decide anything; rendered anew for each event of a pair."""

    render: Callable[[int], Any] = field(repr=False)


def hidden_texts() -> st.SearchStrategy[Hidden]:
    return st.sampled_from(
        [
            Hidden(lambda n: f"zqx{n:08x}vrk"),
            Hidden(lambda n: f"zqx{n:08x}@mail.example.org"),
            Hidden(lambda n: f"Zqxu {'bcdfghjk'[n % 8]}vrk{n:08x}"),
            Hidden(lambda n: 7_700_000_000_000 + n),
        ]
    )


_HIDDEN_JSON = st.recursive(
    hidden_texts(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3),
        st.dictionaries(st.sampled_from(["a", "note", "mail"]), inner, min_size=1, max_size=3),
    ),
    max_leaves=4,
)
_HIDDEN_KEYS = st.sampled_from(
    [Hidden(lambda n: f"zqx{n:08x}"), Hidden(lambda n: f"u{n}@mail.example.org")]
)


def shown(entry: Field, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Values that fit a leaf which leaves, in whatever state."""
    if entry.role == "event_id":
        return st.one_of(
            st.uuids().map(str), st.uuids().map(lambda one: one.hex.upper()), st.just("unfit")
        )
    if entry.treatment == "coarsen_time":
        return st.sampled_from(
            ["2026-03-31T09:15:42.123Z", "2026-03-31 09:15", 1774948542.25, 1774948542, -1, "soon"]
        )
    if entry.treatment == "truncate_ip":
        return st.one_of(
            st.ip_addresses().map(str),
            st.sampled_from(["{{auto}}", "10.1.2.3", "fe80::1%eth0", "203.0.113.0/24", "", "no"]),
        )
    if entry.values:
        return st.sampled_from([*sorted(entry.values), "unlisted"])
    loose = bool(entry.accept & {"text", "scalar"})
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "string": st.one_of(texts, st.integers(), st.booleans()) if loose else texts,
        "long": st.integers(max(entry.minimum, -9), min(entry.maximum, 10**6)),
        "double": st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        "map": st.dictionaries(texts, st.one_of(texts, st.integers(), st.none()), max_size=3),
        "list": st.lists(texts, max_size=3),
    }
    found = strategies[entry.shape]
    if loose and entry.shape != "string":
        found = st.one_of(found, st.integers(-3, 500).map(str), st.sampled_from(["true", "0", "x"]))
    if "pairs" in entry.accept:
        found = st.one_of(found, st.lists(st.tuples(texts, texts).map(list), max_size=3))
    return found


def fitting(
    record: Record,
    name: str,
    texts: st.SearchStrategy[str],
    hidden: st.SearchStrategy[Any],
    *,
    undeclared: bool = True,
    dense: bool = False,
) -> st.SearchStrategy[dict[Any, Any]]:
    """Events whose declared values all fit; `hidden` fills what may not leave.

    If `dense`, no open map and no list of texts is left out.
    """

    @st.composite
    def draw_record(draw: st.DrawFn, record: Record, depth: int) -> dict[Any, Any]:
        if not record.fields:
            return {}
        fields = st.sampled_from(record.fields)
        chosen = draw(st.lists(fields, max_size=6, unique_by=lambda entry: entry.wire))
        if dense:
            chosen += [entry for entry in record.fields if entry.shape in ("map", "list")]
        event: dict[Any, Any] = {entry.wire: draw_field(draw, entry, depth) for entry in chosen}
        if undeclared and draw(st.integers(0, 3)) == 0:
            event[draw(_HIDDEN_KEYS)] = draw(_HIDDEN_JSON)
        return event

    def draw_field(draw: st.DrawFn, entry: Field, depth: int) -> Any:
        if entry.role == "event_name":
            return name
        if entry.record is not None:
            if depth == 5:
                return None
            if entry.shape == "records":
                count = draw(st.integers(0, 2))
                return [draw(draw_record(entry.record, depth + 1)) for _ in range(count)]
            below = draw(draw_record(entry.record, depth + 1))
            if "list" in entry.accept:
                return below.get(entry.record.fields[0].wire) or below
            return below
        if entry.treatment in ("strip", "pseudonymize"):
            closed = entry.known or entry.treatment == "pseudonymize"
            return draw(hidden if closed else st.one_of(hidden, _HIDDEN_JSON))
        if entry.treatment == "shape":
            names = st.sampled_from(["self", "user", "_x", "email", "jane doe"])
            return draw(st.dictionaries(names, _HIDDEN_JSON, max_size=3))
        return draw(shown(entry, texts))

    base = draw_record(record, 0)
    return base.map(lambda event: {**event, "event": name} if name else event)


def unfit(record: Record, name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Events in which any value may be of any type, and any key undeclared."""

    @st.composite
    def draw_record(draw: st.DrawFn, record: Record, depth: int) -> dict[str, Any]:
        if not record.fields:
            return draw(st.dictionaries(TEXTS, ANYTHING, max_size=1))
        chosen = draw(st.lists(st.sampled_from(record.fields), max_size=6))
        event: dict[str, Any] = {}
        for entry in chosen:
            if draw(st.integers(0, 2)) == 0:
                event[entry.wire] = draw(ANYTHING)
            elif entry.record is not None:
                below = draw(st.lists(draw_record(entry.record, depth + 1), max_size=2))
                plain = below[0] if below and draw(st.booleans()) else below
                event[entry.wire] = plain if depth < 5 else None
            else:
                known = entry.treatment in ("strip", "pseudonymize")
                event[entry.wire] = draw(
                    TEXTS if known or entry.treatment == "shape" else shown(entry, TEXTS)
                )
        event.update(draw(st.dictionaries(TEXTS, ANYTHING, max_size=1)))
        return event

    base = draw_record(record, 0)
    return base.map(lambda event: {**event, "event": name} if name else event)


@st.composite
def events(draw: st.DrawFn, kind: str) -> tuple[CompiledRules, bytes]:
    """Any event of a kind, as bytes."""
    name = draw(st.sampled_from(sorted(variants(kind))))
    rules = variants(kind)[name]
    event = draw(unfit(rules.record, name))
    return rules, json.dumps(event, ensure_ascii=draw(st.booleans())).encode(
        "utf-8", "surrogatepass"
    )


@st.composite
def fitting_events(draw: st.DrawFn, kind: str) -> tuple[CompiledRules, Any]:
    """Events that fit, with `Hidden` where a value may not leave."""
    name = draw(st.sampled_from(sorted(variants(kind))))
    rules = variants(kind)[name]
    return rules, draw(fitting(rules.record, name, TEXTS.filter(_encodable), hidden_texts()))


def _encodable(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def rendered(tree: Any, number: int) -> Any:
    """Put values in place of what is hidden: others for another number."""
    if isinstance(tree, Hidden):
        return tree.render(number)
    if isinstance(tree, dict):
        return {rendered(key, number): rendered(value, number) for key, value in tree.items()}
    if isinstance(tree, list):
        return [rendered(item, number) for item in tree]
    return tree


def leaves(record: Record, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Field]]:
    """Every leaf a record declares, with the way to it."""
    for entry in record.fields:
        here = (*path, entry.wire)
        if entry.record is not None:
            yield from leaves(entry.record, (*here, "[]") if entry.shape == "records" else here)
        else:
            yield here, entry


def planted(path: tuple[str, ...], value: Any) -> Any:
    """Build the event that holds a value at one place and nothing else."""
    for name in reversed(path):
        value = [value] if name == "[]" else {name: value}
    return value
