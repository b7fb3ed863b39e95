"""What holds for every event of every kind (docs: privacy.md g1, g2; reliability.md 69, 71)."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from foreign_json import (
    ANYTHING,
    KINDS,
    events,
    fitting,
    fitting_events,
    hidden_texts,
    leaves,
    planted,
    rendered,
    schemas,
    variants,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scrubbers.engine import Ledger, Outcome, rescrub, scrub
from telemetry.errors import DecodeError, EventError
from telemetry.rules import CompiledRules
from telemetry.tolerant import strict_json

COMMON = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
each_kind = pytest.mark.parametrize("kind", KINDS)
EVERYONE = [("ip", "198.51.100.23"), ("secret", "sessionvalue-77")]


def told(error: EventError) -> None:
    """Check what must hold of any refusal."""
    assert re.fullmatch(r"[a-z_]+( at [a-z_.]+)?", str(error))
    assert "canary" not in repr(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def scrubbed(rules: CompiledRules, raw: bytes) -> Outcome | None:
    """Scrub; check what must hold of a refusal."""
    try:
        return scrub(raw, rules, known=EVERYONE, client_address="198.51.100.23")
    except EventError as error:
        told(error)
        return None


@each_kind
@COMMON
@given(data=st.data())
def test_any_event_is_scrubbed_or_refused_in_words_of_ours(kind: str, data: st.DataObject) -> None:
    rules, raw = data.draw(events(kind))
    outcome = scrubbed(rules, raw)
    if outcome is None:
        return
    outcome.event.decode("utf-8")
    rules.reread(outcome.event)
    assert b"\\u0000" not in outcome.event
    assert all(
        remark.action in ("remove", "replace", "reduce", "invalid") for remark in outcome.remarks
    )


@COMMON
@given(
    raw=st.one_of(
        st.binary(max_size=60),
        ANYTHING.map(lambda data: json.dumps(data).encode()),
        st.sampled_from(
            [b"", b"[" * 10**5, b'{"extra":' * 10**5, b"9" * 5000, b'"', b"\xef\xbb\xbf{}"]
        ),
        st.sampled_from([b'{"errors":1e999}', b'{"message":' + b"9" * 5000 + b"}", b"[]" * 1000]),
    ),
    kind=st.sampled_from(KINDS),
)
def test_any_bytes_are_scrubbed_or_refused_in_words_of_ours(raw: bytes, kind: str) -> None:
    try:
        rules = schemas().rules_for(kind, raw)
    except DecodeError as error:
        told(error)
        return
    scrubbed(rules, raw)


@each_kind
@COMMON
@given(data=st.data())
def test_scrubbing_twice_changes_nothing_and_remarks_nothing(
    kind: str, data: st.DataObject
) -> None:
    rules, raw = data.draw(events(kind))
    first = scrubbed(rules, raw)
    assume(first is not None)
    assert first is not None
    again = rescrub(first.event, rules)
    assert again.event == first.event
    assert again.remarks == []
    assert again.identifiers == []
    assert (again.event_id, again.event_time) == (first.event_id, first.event_time)
    # A later policy reads what an earlier one let through as if anybody had sent it.
    assert scrub(first.event, rules).event == first.event


class Slowly:
    """Rules that take the slow path, whatever comes; and watch what is encoded."""

    def __init__(self, rules: CompiledRules) -> None:
        self._rules = rules
        self.treatments = rules.treatments
        self.rewrite, self.slots, self.forms = rules.rewrite, rules.slots, rules.forms
        self.encoded: list[Any] = []

    def decode(self, raw: bytes, ledger: Ledger) -> Any:
        return self._rules._decode_slowly(raw, ledger)

    def encode(self, contract: Any) -> bytes:
        self.encoded.append(contract)
        return self._rules.encode(contract)

    reread = recheck = None


@each_kind
@COMMON
@given(data=st.data())
def test_both_paths_make_the_same_of_what_the_fast_one_takes(
    kind: str, data: st.DataObject
) -> None:
    rules, tree = data.draw(fitting_events(kind))
    raw = json.dumps(rendered(tree, 1)).encode()
    try:
        rules._decode(raw)
    except msgspec.MsgspecError:
        assume(False)
    fast, slow = scrub(raw, rules), scrub(raw, Slowly(rules))
    assert fast == slow


@each_kind
@COMMON
@given(data=st.data())
def test_only_contract_types_are_encoded(kind: str, data: st.DataObject) -> None:
    rules, raw = data.draw(events(kind))
    watched = Slowly(rules)
    try:
        scrub(raw, watched)
    except EventError:
        return
    contracts = set(rules.contract_types.values())

    def walk(value: Any) -> None:
        if isinstance(value, msgspec.Struct):
            assert type(value) in contracts
            for name in value.__struct_fields__:
                walk(getattr(value, name))
        elif isinstance(value, dict):
            for item in (*value, *value.values()):
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        else:
            assert value is None or type(value) in (str, int, float, bool)

    (contract,) = watched.encoded
    walk(contract)


@each_kind
@COMMON
@given(data=st.data(), numbers=st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)))
def test_what_may_not_leave_decides_nothing(
    kind: str, data: st.DataObject, numbers: tuple[int, int]
) -> None:
    rules, tree = data.draw(fitting_events(kind))
    assume(numbers[0] % 8 != numbers[1] % 8)
    one, other = (scrub(json.dumps(rendered(tree, number)).encode(), rules) for number in numbers)
    assert one.event == other.event
    assert one.remarks == other.remarks
    assert (one.event_id, one.event_time) == (other.event_id, other.event_time)
    assert [sort for sort, _ in one.identifiers] == [sort for sort, _ in other.identifiers]
    for mark in (b"zqx", b"vrk", b"mail.example.org", b"77000000"):
        assert mark not in one.event.lower()
        assert mark not in repr(one.remarks).encode().lower()


MAIL = "q7{}canary.vk@mail.example.org"
PHRASES = (
    "{}",
    "no such user: {}",
    "https://app.example.com/people/{}/edit?mail={}#{}",
    "/srv/app/{}/main.py",
    "é {} —",
)


@each_kind
def test_an_address_planted_at_any_declared_place_comes_out_nowhere(kind: str) -> None:
    planted_at = 0
    refused: list[str] = []
    for name, rules in variants(kind).items():
        for path, entry in leaves(rules.record):
            for number, phrase in enumerate(PHRASES):
                mail = MAIL.format(planted_at)
                text = phrase.replace("{}", mail)
                forms: list[Any] = [text]
                if number == 0:
                    forms += [
                        {text: "x"}, {"x": text}, [text], [[text, "x"]], [["x", text]],
                        {"a": {"b": [{text: text}]}}, [{"values": text}], f"\ud800{text}",
                    ]  # fmt: skip
                for form in forms:
                    planted_at += 1
                    event = planted(path, form)
                    if name and entry.role != "event_name":
                        event["event"] = name
                    raw = json.dumps(event).encode()
                    try:
                        chosen = schemas().rules_for(kind, raw)
                        outcome = scrub(raw, chosen)
                    except EventError as error:
                        told(error)
                        refused.append(entry.role)
                        continue
                    where = f"{path} {form!r}"
                    assert b"canary" not in outcome.event, where
                    assert "canary" not in repr(outcome.remarks), where
                    assert "canary" not in outcome.event_id, where
                    assert not any("canary" in path for path in chosen.unknown_paths(raw)), where
    assert planted_at > 50
    assert set(refused) <= {"event_name"}


@st.composite
def dirty_texts(draw: st.DrawFn) -> str:
    """Texts of which about half hold an address, so that clean ones stand between."""
    clean = draw(st.sampled_from(["row not found", "", "main", "é", "200", "v1.2.3"]))
    phrase = draw(st.sampled_from(["", "", "", *PHRASES, "k7fjw0q2xz", "K7FJW0Q2XZ"]))
    return phrase.replace("{}", MAIL.format(draw(st.integers(0, 99)))) or clean


@each_kind
@COMMON
@given(data=st.data())
def test_however_many_places_hold_something_none_of_it_comes_out(
    kind: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(variants(kind))))
    rules = variants(kind)[name]
    texts = dirty_texts()
    tree = data.draw(fitting(rules.record, name, texts, hidden_texts(), dense=True))
    known = [*EVERYONE, ("session", "k7fjw0q2xz")]
    raw = json.dumps(rendered(tree, 7)).encode()
    for outcome in (scrub(raw, rules, known=known), scrub(raw, Slowly(rules), known=known)):
        assert b"canary" not in outcome.event
        assert "canary" not in repr(outcome.remarks)
        # A line of code may hold what a request holds; nothing else may.
        contract, gathered = rules.reread(outcome.event), Ledger(rules.treatments)
        rules.recheck(contract, (), gathered)
        assert not any("k7fjw0q2xz" in text.lower() for text in gathered.texts)


@each_kind
def test_an_undeclared_place_is_no_place(kind: str) -> None:
    for name, rules in variants(kind).items():
        ways = {path[:depth] for path, _ in leaves(rules.record) for depth in range(len(path))}
        for way in sorted(way for way in ways if (*way, "[]") not in ways):
            for extra in ({"undeclared": "canary"}, {"canary@mail.example.org": 1}):
                event = planted((*way, next(iter(extra))), next(iter(extra.values())))
                if isinstance(event, dict) and name:
                    event["event"] = name
                outcome = scrub(json.dumps(event).encode(), rules)
                assert b"canary" not in outcome.event
                assert b"undeclared" not in outcome.event
                assert outcome.remarks == []


def test_json_that_is_hostile_is_refused_quickly() -> None:
    for raw in (b"[" * 10**6, b'{"a":' * 10**5 + b"1" + b"}" * 10**5, b"9" * 10**6):
        with pytest.raises(DecodeError, match="undecodable"):
            strict_json(raw)


def test_an_entry_that_goes_with_its_name_does_not_hide_the_one_behind_it() -> None:
    rules = schemas().rules_for("error_event", b"{}")
    mail = MAIL.format(7)
    for tags in ({mail: "x", "seen": mail}, {"seen": "x", mail: mail, "again": mail}):
        outcome = scrub(json.dumps({"tags": tags, "fingerprint": ["x", mail]}).encode(), rules)
        assert b"canary" not in outcome.event
        assert sorted(json.loads(outcome.event)["tags"]) == sorted(set(tags) - {mail})
