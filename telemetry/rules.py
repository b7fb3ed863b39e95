"""Records made to run: types, treatments as generated code, and which event gets which.

Each record is compiled twice. The *input* type says what foreign JSON may look like: every field
may be missing or null, numbers may come as text where ``accept`` says so, and what is stripped is
only noticed (`msgspec.Raw`), never decoded. The *contract* type is what may leave: no stripped
field exists in it. Only contracts have an encoder. What neither declares never becomes an object.

From the same annotations `telemetry.codegen` makes the code that leads from one to the other;
`CompiledRules.source` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec

from scrubbers.detectors import Detectors, finder
from scrubbers.engine import (
    FORMATS,
    KEY,
    MEMOS,
    PUBLIC_WORDS,
    Ledger,
    Path,
    Slot,
    Treatments,
    beside,
    whole,
)
from scrubbers.model import Remark
from telemetry.codegen import leaves, source_of
from telemetry.errors import DecodeError, SchemaError
from telemetry.policy import Policy, Property
from telemetry.schema import LONGEST_INT, Field, Record, load_records
from telemetry.tolerant import prune, strict_json, unknown_paths

__all__ = ["CompiledRules", "Schemas"]

_BESIDE: Final = frozenset(("kind", "_remarks"))
"""Keys that stand beside an event's own fields: our wire format's."""
_RAW: Final = msgspec.Raw()
_Int = Annotated[int, msgspec.Meta(ge=-LONGEST_INT, le=LONGEST_INT)]
_Scalar = str | int | float | bool | None
_Value = str | int | float | bool | list[msgspec.Raw] | dict[str, msgspec.Raw] | None
"""A value of which only the class is kept; what it holds below is not decoded."""


def _input_type(entry: Field, types: Mapping[str, type]) -> tuple[Any, Any]:
    """Type and default of a field in foreign JSON."""
    loose = entry.accept & {"text", "scalar"}
    if entry.treatment == "strip" and not entry.known:
        return msgspec.Raw, _RAW
    if entry.treatment == "strip":
        return _Scalar, None
    if entry.treatment == "pseudonymize":
        return str | int | None, None
    if entry.treatment == "coarsen_time":
        return str | int | float | None, None
    if entry.treatment == "shape" and entry.values:
        return msgspec.Raw, _RAW
    if entry.treatment == "shape":
        return dict[str, _Value] | None, None
    simple: dict[str, Any] = {
        "string": _Scalar if loose else str | None,
        "long": _Scalar
        if loose
        else Annotated[int, msgspec.Meta(ge=entry.minimum, le=entry.maximum)] | None,
        "double": _Scalar if loose else float | None,
        "boolean": _Scalar if loose else bool | None,
        "map": dict[str, _Scalar] | None,
        "list": list[str] | None,
    }
    if entry.shape in simple:
        return simple[entry.shape], None
    assert entry.record is not None  # noqa: S101 - shapes record and records have one
    nested: Any = types[entry.record.name]
    if entry.shape == "records":
        return list[nested] | None, None
    if "list" in entry.accept:
        inner = entry.record.fields[0].record
        assert inner is not None  # noqa: S101 - checked when the record was read
        item: Any = types[inner.name]
        return nested | list[item] | None, None
    return nested | None, None


def _contract_type(entry: Field, types: Mapping[str, type]) -> Any:
    """Type of a field in the contract."""
    simple: dict[str, Any] = {
        "string": str | None,
        "long": int | None,
        "double": float | None,
        "boolean": bool | None,
        "map": dict[str, str] | None,
        "list": list[str] | None,
    }
    if entry.shape in simple:
        return simple[entry.shape]
    assert entry.record is not None  # noqa: S101 - shapes record and records have one
    nested: Any = types[entry.record.name]
    return list[nested] | None if entry.shape == "records" else nested | None


def _walk(record: Record) -> Iterator[Record]:
    """All records below one, each once, nested ones first."""
    seen: set[str] = set()

    def visit(current: Record) -> Iterator[Record]:
        for entry in current.fields:
            if entry.record is not None and entry.record.name not in seen:
                yield from visit(entry.record)
        if current.name not in seen:
            seen.add(current.name)
            yield current

    return visit(record)


_has_nul: Final = finder(b"\\u0000")
_NULLS: Final = frozenset((b"null", b'""', b"{}", b"[]"))


def _present(raw: msgspec.Raw) -> bool:
    """Tell whether a stripped value held anything."""
    return len(raw) > len(b"null") or bytes(raw) not in _NULLS


_read_map = msgspec.json.Decoder(dict[str, _Value]).decode
_read_text = msgspec.json.Decoder(str).decode


def _among(raw: msgspec.Raw, keys: frozenset[str]) -> dict[str, Any] | None:
    """Read the listed keys of a JSON object, or of a text that holds one; None without any."""
    data: bytes | str = bytes(raw)
    try:
        # Some clients send a body as they read it: JSON as text.
        if data[:1] == b'"':
            data = _read_text(data)
        entries = _read_map(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return {key: value for key, value in entries.items() if key in keys} or None


def _text_of(value: bool | float) -> str:  # noqa: FBT001 - a JSON scalar
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


_EVENT_ID: Final = re.compile(r"[0-9a-fA-F]{32}")


def _event_id(value: str, path: Path, name: str, ledger: Ledger) -> str:
    """Read an event id in either of its usual forms; give it as 32 lower-case hex digits."""
    plain = value.replace("-", "").lower()
    if _EVENT_ID.fullmatch(plain):
        return plain
    ledger.invalid(path, name)
    return ""


class CompiledRules:
    """What `scrubbers.scrub` runs for one record. Made by `Schemas`."""

    def __init__(self, record: Record, treatments: Treatments) -> None:
        self.record = record
        self.treatments = treatments
        inputs: dict[str, type] = {}
        contracts: dict[str, type] = {}
        values: dict[str, frozenset[str]] = {}
        for part in _walk(record):
            inputs[part.name] = msgspec.defstruct(
                f"In_{part.name}",
                [(entry.name, *_input_type(entry, inputs)) for entry in part.fields],
                rename={entry.name: entry.wire for entry in part.fields},
                gc=False,
            )
            kept = [entry for entry in part.fields if leaves(entry)]
            contracts[part.name] = msgspec.defstruct(
                f"Out_{part.name}",
                [(entry.name, _contract_type(entry, contracts), None) for entry in kept],
                rename={entry.name: entry.wire for entry in kept},
                omit_defaults=True,
                forbid_unknown_fields=True,
                gc=False,
            )
            values.update({entry.name: entry.values for entry in part.fields if entry.values})
        self.input_types, self.contract_types = inputs, contracts
        namespace: dict[str, Any] = {
            "RAW": _RAW,
            "KEY": KEY,
            "PUBLIC_WORDS": PUBLIC_WORDS,
            "QUIET": treatments.quiet.texts,
            "QUIET_FILES": treatments.quiet.files,
            "Remark": Remark,
            "beside": beside,
            "whole": whole,
            "VALUES": values,
            "among": _among,
            "present": _present,
            "text_of": _text_of,
            "event_id": _event_id,
            **FORMATS,
            **{f"seen_{form}": memo for form, memo in MEMOS.items()},
            **{f"In_{name}": type_ for name, type_ in inputs.items()},
            **{f"NOTHING_{name}": type_() for name, type_ in inputs.items()},
            **{f"Out_{name}": type_ for name, type_ in contracts.items()},
        }
        # Names come from .avsc files of this package or the operator's own, and Avro names are
        # identifiers; wire names stand in the source as literals only.
        exec(compile(source_of(record), f"<{record.name}>", "exec"), namespace)  # noqa: S102
        self.rewrite: Callable[[Any, Path, Ledger], Any] = namespace["rewrite_root"]
        self.recheck: Callable[[Any, Path, Ledger], None] = namespace["recheck_root"]
        self._slots: Callable[..., None] = namespace["slots_root"]
        self._forms: Callable[..., None] = namespace["forms_root"]
        self.encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(inputs[record.name]).decode
        self._reread: Callable[[bytes], Any] = msgspec.json.Decoder(contracts[record.name]).decode

    @property
    def source(self) -> str:
        """The generated code, made again: it is 60 KB a record, and only people read it."""
        return source_of(self.record)

    def slots(self, contract: Any, texts: Collection[str], statics: Collection[str]) -> list[Slot]:
        """Where some of the contract's free texts stand, in the order of its fields."""
        found: list[Slot] = []
        self._slots(contract, (), texts, statics, found)
        return found

    def forms(self, contract: Any, texts: Collection[str]) -> list[Slot]:
        """Where some of the texts stand that the contract keeps for their form."""
        found: list[Slot] = []
        self._forms(contract, (), texts, found)
        return found

    def decode(self, raw: bytes, ledger: Ledger) -> Any:
        """Read foreign JSON: by type, or leaf by leaf where the type does not fit.

        Raises:
            DecodeError: It is no JSON object at all.
        """
        try:
            # A NUL is valid JSON, but no database behind a recipient stores it: see `tolerant`.
            if not _has_nul(raw):
                return self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        return self._decode_slowly(raw, ledger)

    def _decode_slowly(self, raw: bytes, ledger: Ledger) -> Any:
        data = strict_json(raw)
        if not isinstance(data, dict):
            raise DecodeError("not_an_object")
        pruned = prune(self.record, data, (), ledger)
        try:
            return self._decode(msgspec.json.encode(pruned))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise DecodeError("undecodable") from None

    def reread(self, body: bytes) -> Any:
        """Read JSON of the contract; strict, because we wrote it.

        Raises:
            DecodeError: It is not what this contract says.
        """
        try:
            return self._reread(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise DecodeError("contract") from None

    def unknown_paths(self, raw: bytes) -> list[str]:
        """List what the event holds and no record declares; suspicious names as ``<key>``."""
        data = strict_json(raw)
        found: set[str] = set()
        if isinstance(data, dict):
            unknown_paths(self.record, data, "", found, self.treatments.detectors.gate)
        return sorted(found - _BESIDE)


class Schemas:
    """All kinds of events under one policy: which rules an event is scrubbed by.

    Kinds for which the policy has a purpose are made to run at once. The others, which a gateway
    drops unread, only when somebody asks: they are half of the records, and of the 15 MB.
    """

    def __init__(
        self,
        policy: Policy,
        detectors: Detectors,
        *,
        records: Mapping[str, Record] | None = None,
        user_agents: bool = True,
    ) -> None:
        self.policy = policy
        self.records = dict(records or load_records())
        self._plain: dict[str, CompiledRules] = {}
        self._off: dict[str, tuple[Record, Treatments]] = {}
        self._by_event: dict[str, dict[str, CompiledRules]] = {}
        tables: dict[str, Mapping[str, Mapping[str, Property]]] = {
            "event": policy.events,
            "user_properties": {"": policy.user_properties},
        }
        lists = {name: frozenset(keys) for name, keys in policy.treatments.shape.items()}
        self._check_lists(lists)
        for kind, declared in list(self.records.items()):
            record = _with_keys(declared, lists)
            if policy.trace == "drop":
                record = _without_trace(record)
            self.records[kind] = record
            treatments = Treatments(
                detectors=detectors,
                address_profile=policy.address_profile,
                grain_s=policy.time_grain_s(kind),
                user_agents=user_agents,
            )
            table = next((e.declared_by for e in record.fields if e.declared_by), None)
            if table is None and kind not in policy.purpose_of_kind:
                self._off[kind] = record, treatments
                continue
            if table is None:
                self._plain[kind] = CompiledRules(record, treatments)
                continue
            if table not in tables:
                raise SchemaError(
                    f"{kind}: properties are declared by the unknown table {table!r}.",
                    remedy=f"Use one of: {', '.join(sorted(tables))}.",
                )
            rules = {
                name: CompiledRules(_with_properties(record, properties), treatments)
                for name, properties in tables[table].items()
            }
            if table == "event":
                self._by_event[kind] = rules
            else:
                self._plain[kind] = rules[""]
        missing = [
            k
            for purpose in policy.purposes.values()
            for k in purpose.kinds
            if k not in self.records
        ]
        if missing:
            raise SchemaError(
                f"purposes.toml names the kind {missing[0]!r}, for which there is no schema.",
                remedy=f"Use one of: {', '.join(sorted(self.records))}.",
            )

    def _check_lists(self, lists: Mapping[str, frozenset[str]]) -> None:
        named = {
            entry.keys
            for record in self.records.values()
            for part in _walk(record)
            for entry in part.fields
        }
        if unknown := sorted(lists.keys() - named):
            raise SchemaError(
                f"treatments.toml, [shape] has the list {unknown[0]!r}, which no record uses.",
                remedy=f"Use one of: {', '.join(sorted(named - {''}))}.",
            )

    @property
    def all_rules(self) -> Iterator[CompiledRules]:
        """Every compiled record, for tests and the data dictionary."""
        for kind in self._off:
            self.rules_for(kind, b"")
        yield from self._plain.values()
        for rules in self._by_event.values():
            yield from rules.values()

    def rules_for(self, kind: str, raw: bytes) -> CompiledRules:
        """Choose the rules of an event: by its kind and, for analytics, by its declared name.

        Raises:
            DecodeError: Unknown kind (``unknown_kind``) or an event name that events.toml does not
                list (``undeclared_event``).
        """
        if (rules := self._plain.get(kind)) is not None:
            return rules
        if (off := self._off.get(kind)) is not None:
            return self._plain.setdefault(kind, CompiledRules(*off))
        by_event = self._by_event.get(kind)
        if by_event is None:
            raise DecodeError("unknown_kind")
        try:
            name: Any = _decode_name(raw).event
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            data = strict_json(raw)
            name = data.get("event") if isinstance(data, dict) else None
        if isinstance(name, str) and (rules := by_event.get(name)) is not None:
            return rules
        raise DecodeError("undeclared_event", "event")


class _Named(msgspec.Struct):
    event: str = ""


_decode_name = msgspec.json.Decoder(_Named).decode

_SHAPES: Final = {
    "enum": "string",
    "text": "string",
    "integer": "long",
    "number": "double",
    "boolean": "boolean",
    "object": "null",
}


def _without_trace(record: Record) -> Record:
    """Strip the trace of an event (``contexts.trace``), and its ids from texts that repeat them."""

    def gone(entry: Field) -> Field:
        known = "trace" if entry.form == "hex" else ""
        return replace(entry, treatment="strip", shape="null", record=None, known=known, form="")

    def treated(entry: Field) -> Field:
        if entry.name == "trace" and entry.record is not None:
            record = replace(entry.record, fields=tuple(map(gone, entry.record.fields)))
            return replace(entry, record=record)
        if entry.record is None:
            return entry
        return replace(entry, record=_without_trace(entry.record))

    return replace(record, fields=tuple(map(treated, record.fields)))


def _with_keys(record: Record, lists: Mapping[str, frozenset[str]]) -> Record:
    """Let the class of listed keys stay of what is stripped otherwise; else leave all as it is."""
    fields = []
    for entry in record.fields:
        if keys := lists.get(entry.keys):
            fields.append(replace(entry, shape="map", treatment="shape", values=keys))
        elif entry.record is not None:
            fields.append(replace(entry, record=_with_keys(entry.record, lists)))
        else:
            fields.append(entry)
    return record if fields == list(record.fields) else replace(record, fields=tuple(fields))


def _with_properties(record: Record, properties: Mapping[str, Property]) -> Record:
    """Put the declared properties of one event where the record has its open map."""
    fields = tuple(
        Field(
            name=f"p{n}",
            wire=name,
            shape=_SHAPES[entry.type],
            privacy={"text": "free_text", "object": "identifier"}.get(entry.type, "technical"),
            treatment={"text": "redact_text", "object": "pseudonymize"}.get(entry.type, "keep"),
            kind=f"object:{name}" if entry.type == "object" else "",
            minimum=entry.minimum,
            maximum=entry.maximum,
            values=frozenset(entry.values),
            accept=frozenset(("scalar",)) if entry.type in ("integer", "boolean") else frozenset(),
        )
        for n, (name, entry) in enumerate(properties.items())
    )
    nested = Record(name="Properties", fields=fields)
    return replace(
        record,
        fields=tuple(
            replace(entry, shape="record", record=nested, treatment="keep")
            if entry.declared_by
            else entry
            for entry in record.fields
        ),
    )
