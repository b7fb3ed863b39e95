"""What is compiled from any schema: no payload type may ever be written out, no path may tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

import msgspec
import pytest
from foreign_json import KINDS, Hidden, events, fitting_events, rendered, schemas
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from scrubbers.engine import KEY, Ledger, beside
from telemetry.errors import DecodeError
from telemetry.rules import CompiledRules
from telemetry.schema import Record, load_records

ALL = list(schemas().all_rules)
_IDS = [f"{rules.record.name}{number}" for number, rules in enumerate(ALL)]


def types_in(kind: inspect.Type) -> Iterator[inspect.Type]:
    yield kind
    for name in ("type", "item_type", "key_type", "value_type"):
        if isinstance(inner := getattr(kind, name, None), inspect.Type):
            yield from types_in(inner)
    for inner in getattr(kind, "types", ()):
        yield from types_in(inner)


@pytest.mark.parametrize("rules", ALL, ids=_IDS)
def test_no_contract_holds_a_raw_or_open_type(rules: CompiledRules) -> None:
    for contract in rules.contract_types.values():
        assert contract.__struct_config__.forbid_unknown_fields
        for entry in inspect.type_info(contract).fields:
            for found in types_in(entry.type):
                assert not isinstance(found, (inspect.RawType, inspect.AnyType, inspect.CustomType))


@pytest.mark.parametrize("rules", ALL, ids=_IDS)
def test_no_contract_has_a_place_for_what_is_stripped_or_sealed(rules: CompiledRules) -> None:
    gone = {
        (record.name, entry.name)
        for record in _records(rules)
        for entry in record.fields
        if entry.treatment in ("strip", "pseudonymize")
    }
    for name, contract in rules.contract_types.items():
        assert not gone & {(name, entry) for entry in contract.__struct_fields__}


def _records(rules: CompiledRules) -> Iterator[object]:
    pending = [rules.record]
    for record in pending:
        yield record
        pending += [entry.record for entry in record.fields if entry.record is not None]


@pytest.mark.parametrize("rules", ALL, ids=_IDS)
def test_an_input_with_unread_bytes_is_no_contract(rules: CompiledRules) -> None:
    assert not set(rules.input_types.values()) & set(rules.contract_types.values())
    assert "encode" not in rules.source


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), value=st.text(min_size=1))
def test_unknown_paths_name_keys_and_never_a_value(
    kind: str, data: st.DataObject, value: str
) -> None:
    rules, tree = data.draw(fitting_events(kind))
    tree = {**tree, "vendor": Hidden(lambda n: f"zqx{n:08x}vrk"), "a" * 65: value, "b\x00": value}
    paths = rules.unknown_paths(json.dumps(rendered(tree, 7)).encode())
    assert "vendor" in paths
    assert "<key>" in paths
    assert not any("vrk" in path or "@" in path or "a" * 65 in path for path in paths)
    assert all(path.isprintable() for path in paths)


def test_a_number_that_is_none_costs_its_leaf() -> None:
    rules = schemas().rules_for("session", b"{}")
    for number in (b"1e999", b"-1e999", b"NaN", b"Infinity", b"1" + b"0" * 400):
        raw = b'{"errors": %b, "duration": %b, "status": "ok"}' % (number, number)
        contract = rules.rewrite(rules.decode(raw, _ledger(rules)), (), _ledger(rules))
        assert rules.encode(contract) == b'{"status":"ok"}'


def _ledger(rules: CompiledRules) -> Ledger:
    return Ledger(rules.treatments)


def test_a_body_that_is_not_of_the_contract_is_refused_without_its_text() -> None:
    rules = schemas().rules_for("session", b"{}")
    for body in (b'{"did":"jane"}', b'{"errors":"jane"}', b"jane", b"", b'{"status":"\xff"}'):
        with pytest.raises(Exception, match=r"^contract$") as caught:
            rules.reread(body)
        assert "jane" not in repr(caught.value)
        assert not isinstance(caught.value, msgspec.MsgspecError)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_text_that_is_searched_has_a_place_and_every_place_is_searched(
    kind: str, data: st.DataObject
) -> None:
    """What is found suspicious is found again by its text: nothing may be searched and not seen."""
    rules, raw = data.draw(events(kind))
    rules.treatments.quiet.texts.clear()
    rules.treatments.quiet.files.clear()
    ledger = Ledger(rules.treatments, "198.51.100.23")
    try:
        contract = rules.rewrite(rules.decode(raw, ledger), (), ledger)
    except DecodeError:
        return
    for gathered in (ledger, Ledger(rules.treatments)):
        if gathered is not ledger:
            rules.recheck(contract, (), gathered)
        places = rules.slots(contract, {*gathered.texts}, {*gathered.statics})
        searched = [text for *_, text, _, _, static in places if not static]
        # The values of open maps are searched beside their names as well.
        named = [
            beside(key, text)
            for owner, key, text, *_ in places
            if type(owner) is dict and key is not KEY
        ]
        assert Counter([*searched, *named]) == Counter(gathered.texts)
        assert [text for *_, text, _, _, static in places if static] == gathered.statics


def test_an_attribute_is_treated_the_same_wherever_it_may_stand() -> None:
    records = load_records()

    def treatments(record: Record, path: tuple[str, ...]) -> dict[str, dict[str, object]]:
        for name in path:
            (record,) = [e.record for e in record.fields if e.wire == name and e.record]
        found = {}
        for entry in record.fields:
            leaf = entry.record.fields[0] if entry.record is not None else entry
            found[entry.wire] = {
                f.name: getattr(leaf, f.name)
                for f in fields(leaf)
                if f.name not in ("name", "wire")
            }
        return found

    once = treatments(records["span"], ("attributes",))
    assert once["user.id"]["treatment"] == "pseudonymize"
    for kind in ("log", "trace_metric"):
        assert treatments(records[kind], ("attributes",)) == once
    assert treatments(records["transaction"], ("contexts", "trace", "data")) == once
    assert treatments(records["transaction"], ("spans", "data")) == once
