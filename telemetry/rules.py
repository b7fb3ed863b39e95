"""Records made to run: types, treatments as generated code, and which event gets which.

Each record is compiled twice. The *input* type says what foreign JSON may look like: every field
may be missing or null, numbers may come as text where ``accept`` says so, and what is stripped is
only noticed (`msgspec.Raw`), never decoded. The *contract* type is what may leave: no stripped
field exists in it. Only contracts have an encoder. What neither declares never becomes an object.

From the same annotations three functions are generated as plain Python source, the way
``dataclasses`` generates ``__init__`` (docs/decisions/0002-generated-treatments.md): `rewrite`
(input → contract), `recheck` (contract → contract, in place) and `slots` (where its free text
stands). `CompiledRules.source` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec

from scrubbers.detectors import Detectors
from scrubbers.engine import FORMATS, KEY, Ledger, Path, Slot, Treatments
from telemetry.errors import DecodeError, SchemaError
from telemetry.policy import Policy, Property
from telemetry.schema import LONGEST_INT, Field, Record, load_records
from telemetry.tolerant import prune, strict_json, unknown_paths

__all__ = ["CompiledRules", "Schemas"]

_RAW: Final = msgspec.Raw()
_Int = Annotated[int, msgspec.Meta(ge=-LONGEST_INT, le=LONGEST_INT)]
_Scalar = str | int | float | bool | None


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
    if entry.treatment == "shape":
        return dict[str, msgspec.Raw] | None, None
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


def _leaves(entry: Field) -> bool:
    return entry.shape != "null"


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


class _Source:
    """Lines of generated Python, indented."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)


def _emit_rewrite(record: Record, out: _Source) -> None:
    """Input → contract: one statement or two for each declared field."""
    out(0, f"def rewrite_{record.name}(i, p, c):")
    arguments = []
    for entry in record.fields:
        name, wire = entry.name, entry.wire
        call = f"p, {wire!r}"
        if entry.treatment == "strip" and entry.known:
            out(1, f"if i.{name} is not None: c.know({entry.known!r}, i.{name}, {call})")
            continue
        if entry.treatment == "strip":
            out(1, f"if i.{name} is not RAW and present(i.{name}): c.strip({call})")
            continue
        if entry.treatment == "pseudonymize":
            out(1, f"if i.{name} is not None: c.identify({entry.kind!r}, i.{name}, {call})")
            continue
        arguments.append(f"v_{name}")
        out(1, f"v_{name} = i.{name}")
        if entry.role == "event_id":
            _emit_event_id(f"v_{name}", call, out)
        elif entry.role == "event_time":
            out(1, f"if v_{name} is not None:")
            out(2, f"c.event_time = c.moment(v_{name})")
            out(2, f"v_{name} = c.time(v_{name}, {call})")
        elif entry.shape == "record":
            _emit_record(entry, out)
        elif entry.shape == "records":
            assert entry.record is not None  # noqa: S101 - shape says so
            out(
                1,
                f"if v_{name} is not None: v_{name} = "
                f"[rewrite_{entry.record.name}(e, (*p, {wire!r}, n), c) for n, e in enumerate(v_{name})]",
            )
        else:
            _emit_leaf(entry, out)
    out(1, f"return Out_{record.name}({', '.join(arguments)})")


def _emit_event_id(value: str, call: str, out: _Source) -> None:
    out(1, f"if {value} is not None:")
    out(2, f"c.event_id = event_id({value}, {call}, c)")
    out(2, f"{value} = c.event_id or None")


def _emit_record(entry: Field, out: _Source) -> None:
    assert entry.record is not None  # noqa: S101 - shape says so
    name = entry.name
    if "list" in entry.accept:
        out(1, f"if type(v_{name}) is list: v_{name} = In_{entry.record.name}(v_{name})")
    out(
        1,
        f"if v_{name} is not None: v_{name} = rewrite_{entry.record.name}(v_{name}, (*p, {entry.wire!r}), c)",
    )


def _texts(entry: Field) -> str:
    """Name the list that a text is scanned with."""
    program = entry.static or entry.keep_path or entry.treatment == "shape"
    return "c.statics" if program else "c.texts"


def _emit_leaf(entry: Field, out: _Source) -> None:
    name, call = entry.name, f"p, {entry.wire!r}"
    loose = bool(entry.accept & {"text", "scalar"})
    value = f"v_{name}"
    if entry.treatment == "redact_text" and entry.shape == "string":
        if loose:
            out(
                1,
                f"if {value} is not None and type({value}) is not str: {value} = text_of({value})",
            )
        safe = f" and not {entry.form}({value})" if entry.form else ""
        out(1, f"if {value}{safe}: {_texts(entry)}.append({value})")
    elif entry.treatment == "redact_text" and entry.shape == "list":
        out(1, f"if {value}: {_texts(entry)}.extend({value})")
    elif entry.treatment == "redact_text":
        out(1, f"if {value} is not None: {value} = c.texts_of({value})")
    elif entry.treatment == "shape":
        out(1, f"if {value} is not None: {value} = c.shape({value}, {call})")
    elif entry.treatment == "reduce_url":
        how = "file" if entry.keep_path else "url"
        out(1, f"if {value}: {value} = c.{how}({value}, {call})")
    elif entry.treatment == "reduce_user_agent":
        out(1, f"if {value}: {value} = c.user_agent({value}, {call})")
    elif entry.treatment == "truncate_ip":
        out(1, f"if {value}: {value} = c.address({value}, {call})")
    elif entry.treatment == "coarsen_time":
        out(1, f"if {value} is not None: {value} = c.time({value}, {call})")
    elif entry.values:
        out(
            1,
            f"if {value} is not None: {value} = c.member(VALUES[{entry.name!r}], {value}, {call})",
        )
    elif entry.shape == "string":
        out(1, f"if {value} is not None: {value} = c.formatted({entry.form!r}, {value}, {call})")
    elif loose and entry.shape == "long":
        low, high = entry.minimum, entry.maximum
        fits = f"type({value}) is int and {low} <= {value} <= {high}"
        out(1, f"if {value} is not None and not ({fits}):")
        out(2, f"{value} = c.integer({value}, {low}, {high}, {call})")
    elif loose and entry.shape == "boolean":
        out(
            1,
            f"if {value} is not None and type({value}) is not bool: {value} = c.boolean({value}, {call})",
        )


def _emit_recheck(record: Record, out: _Source) -> None:
    """Contract → contract: what a later hop does again, in place."""
    out(0, f"def recheck_{record.name}(o, p, c):")
    out(1, "pass")
    for entry in filter(_leaves, record.fields):
        name, call = entry.name, f"p, {entry.wire!r}"
        value = f"o.{name}"
        if entry.role == "event_id":
            _emit_event_id(value, call, out)
        elif entry.role == "event_time":
            out(1, f"if {value} is not None:")
            out(2, f"c.event_time = c.moment({value})")
            out(2, f"{value} = c.time({value}, {call})")
        elif entry.shape == "record":
            assert entry.record is not None  # noqa: S101 - shape says so
            out(
                1,
                f"if {value} is not None: recheck_{entry.record.name}({value}, (*p, {entry.wire!r}), c)",
            )
        elif entry.shape == "records":
            assert entry.record is not None  # noqa: S101 - shape says so
            out(1, f"if {value}:")
            out(
                2,
                f"for n, e in enumerate({value}): recheck_{entry.record.name}(e, (*p, {entry.wire!r}, n), c)",
            )
        elif entry.shape == "map":
            out(1, f"if {value}:")
            out(2, f"{_texts(entry)}.extend({value})")
            if entry.treatment != "shape":
                out(2, f"c.texts.extend({value}.values())")
        elif entry.shape == "list":
            out(1, f"if {value}: {_texts(entry)}.extend({value})")
        elif entry.treatment == "redact_text":
            safe = f" and not {entry.form}({value})" if entry.form else ""
            out(1, f"if {value}{safe}: {_texts(entry)}.append({value})")
        elif entry.treatment == "reduce_url":
            how = "file" if entry.keep_path else "url"
            out(1, f"if {value}: {value} = c.{how}({value}, {call})")
        elif entry.treatment == "truncate_ip":
            out(1, f"if {value}: {value} = c.address({value}, {call})")
        elif entry.treatment == "coarsen_time":
            out(1, f"if {value} is not None: {value} = c.time({value}, {call})")
        elif entry.values:
            out(
                1,
                f"if {value} is not None: {value} = c.member(VALUES[{entry.name!r}], {value}, {call})",
            )
        elif entry.shape == "string" and entry.form:
            out(
                1, f"if {value} is not None: {value} = c.formatted({entry.form!r}, {value}, {call})"
            )


def _emit_slots(record: Record, out: _Source) -> None:
    """Contract → each free text in it, with the place it stands in."""
    out(0, f"def slots_{record.name}(o, p):")
    for entry in filter(_leaves, record.fields):
        value, wire = f"o.{entry.name}", entry.wire
        static = _texts(entry) == "c.statics"
        if entry.shape == "record":
            assert entry.record is not None  # noqa: S101 - shape says so
            out(
                1,
                f"if {value} is not None: yield from slots_{entry.record.name}({value}, (*p, {wire!r}))",
            )
        elif entry.shape == "records":
            assert entry.record is not None  # noqa: S101 - shape says so
            out(1, f"if {value}:")
            out(
                2,
                f"for n, e in enumerate({value}): yield from slots_{entry.record.name}(e, (*p, {wire!r}, n))",
            )
        elif entry.shape == "list":
            out(1, f"if {value}:")
            out(
                2,
                f"for n, e in enumerate({value}): yield {value}, n, e, p, ({wire!r}, n), {static}",
            )
        elif entry.shape == "map":
            out(1, f"if {value}:")
            # Listed before an entry may be taken out: each text keeps its place in the order.
            out(2, f"entries = list({value}.items())")
            out(2, f"for k, _ in entries: yield {value}, KEY, k, p, ({wire!r},), {static}")
            if entry.treatment != "shape":
                out(2, f"for k, e in entries: yield {value}, k, e, p, ({wire!r}, k), {static}")
        elif entry.treatment in ("redact_text", "reduce_url"):
            safe = f" and not {entry.form}({value})" if entry.form else ""
            out(1, f"if {value}{safe}: yield o, {entry.name!r}, {value}, p, ({wire!r},), {static}")
    out(1, "yield from ()")


_NULLS: Final = frozenset((b"null", b'""', b"{}", b"[]"))


def _present(raw: msgspec.Raw) -> bool:
    """Tell whether a stripped value held anything."""
    return len(raw) > len(b"null") or bytes(raw) not in _NULLS


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
        source = _Source()
        values: dict[str, frozenset[str]] = {}
        for part in _walk(record):
            inputs[part.name] = msgspec.defstruct(
                f"In_{part.name}",
                [(entry.name, *_input_type(entry, inputs)) for entry in part.fields],
                rename={entry.name: entry.wire for entry in part.fields},
                gc=False,
            )
            kept = [entry for entry in part.fields if _leaves(entry)]
            contracts[part.name] = msgspec.defstruct(
                f"Out_{part.name}",
                [(entry.name, _contract_type(entry, contracts), None) for entry in kept],
                rename={entry.name: entry.wire for entry in kept},
                omit_defaults=True,
                forbid_unknown_fields=True,
                gc=False,
            )
            values.update({entry.name: entry.values for entry in part.fields if entry.values})
            _emit_rewrite(part, source)
            _emit_recheck(part, source)
            _emit_slots(part, source)
        self.input_types, self.contract_types = inputs, contracts
        self.source = "\n".join(source.lines)
        namespace: dict[str, Any] = {
            "RAW": _RAW,
            "KEY": KEY,
            "VALUES": values,
            "present": _present,
            "text_of": _text_of,
            "event_id": _event_id,
            **FORMATS,
            **{f"In_{name}": type_ for name, type_ in inputs.items()},
            **{f"Out_{name}": type_ for name, type_ in contracts.items()},
        }
        # Names come from .avsc files of this package or the operator's own, and Avro names are
        # identifiers; wire names stand in the source as literals only.
        exec(compile(self.source, f"<{record.name}>", "exec"), namespace)  # noqa: S102
        self.rewrite: Callable[[Any, Path, Ledger], Any] = namespace[f"rewrite_{record.name}"]
        self.recheck: Callable[[Any, Path, Ledger], None] = namespace[f"recheck_{record.name}"]
        self.slots: Callable[[Any, Path], Iterator[Slot]] = namespace[f"slots_{record.name}"]
        self.encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(inputs[record.name]).decode
        self._reread: Callable[[bytes], Any] = msgspec.json.Decoder(contracts[record.name]).decode

    def decode(self, raw: bytes, ledger: Ledger) -> Any:
        """Read foreign JSON: by type, or leaf by leaf where the type does not fit.

        Raises:
            DecodeError: It is no JSON object at all.
        """
        try:
            # A NUL is valid JSON, but no database behind a recipient stores it: see `tolerant`.
            if b"\\u0000" not in raw:
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
        return sorted(found)


class Schemas:
    """All kinds of events under one policy: which rules an event is scrubbed by."""

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
        self._by_event: dict[str, dict[str, CompiledRules]] = {}
        tables: dict[str, Mapping[str, Mapping[str, Property]]] = {
            "event": policy.events,
            "user_properties": {"": policy.user_properties},
        }
        for kind, record in self.records.items():
            treatments = Treatments(
                detectors=detectors,
                address_profile=policy.address_profile,
                grain_s=policy.time_grain_s(kind),
                user_agents=user_agents,
            )
            table = next((e.declared_by for e in record.fields if e.declared_by), None)
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

    @property
    def all_rules(self) -> Iterator[CompiledRules]:
        """Every compiled record, for tests and the data dictionary."""
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
