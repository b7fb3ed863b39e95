"""A record's annotations → Python source of its treatments. Text in, text out; runs nothing.

Three functions for each record, as straight lines of code, the way ``dataclasses`` generates
``__init__`` (docs/decisions/0002-generated-treatments.md):

- ``rewrite_NAME(i, p, c)``: input → contract. `i` is the decoded input, `p` its path, `c` the
  `scrubbers.engine.Ledger`;
- ``recheck_NAME(o, p, c)``: the contract again, in place, by the policy of today;
- ``slots_NAME(o, p)``: every free text of the contract, with the place it stands in, in the order
  in which the first two hand texts to the ledger.

What the source needs by name (types, formats, the ledger's helpers) `telemetry.rules` provides.
"""

from __future__ import annotations

from collections.abc import Iterable

from scrubbers.engine import MEMOS
from telemetry.schema import Field, Record

__all__ = ["leaves", "source_of"]


def source_of(records: Iterable[Record]) -> str:
    """Generate the functions of records, nested ones first."""
    out = _Source()
    for record in records:
        _emit_rewrite(record, out)
        _emit_recheck(record, out)
        _emit_slots(record, out)
    return "\n".join(out.lines)


def leaves(entry: Field) -> bool:
    """Tell whether a field is in the contract: a stripped one, or one that is sealed, is not."""
    return entry.shape != "null"


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
        given, call = f"i.{entry.name}", f"p, {entry.wire!r}"
        if entry.treatment == "strip" and entry.known:
            out(1, f"if {given} is not None: c.know({entry.known!r}, {given}, {call})")
            continue
        if entry.treatment == "strip":
            out(1, f"if {given} is not RAW and present({given}): c.strip({call})")
            continue
        if entry.treatment == "pseudonymize":
            out(1, f"if {given} is not None: c.identify({entry.kind!r}, {given}, {call})")
            continue
        value = f"v_{entry.name}"
        arguments.append(value)
        if entry.treatment == "shape" and entry.values:
            out(1, f"{value} = among({given}, VALUES[{entry.name!r}])")
            out(1, f"if {value}: {value} = c.shape({value}, {call})")
            out(1, f"elif {given} is not RAW and present({given}): c.strip({call})")
            continue
        out(1, f"{value} = {given}")
        if _emit_role(entry, value, out):
            continue
        if entry.record is None:
            _emit_leaf(entry, value, out)
            continue
        below, how = f"(*p, {entry.wire!r}", f"rewrite_{entry.record.name}"
        if "list" in entry.accept:
            out(1, f"if type({value}) is list: {value} = In_{entry.record.name}({value})")
        if entry.shape == "record":
            out(1, f"if {value} is not None: {value} = {how}({value}, {below}), c)")
        else:
            out(1, f"if {value} is not None:")
            out(2, f"{value} = [{how}(e, {below}, n), c) for n, e in enumerate({value})]")
    out(1, f"return Out_{record.name}({', '.join(arguments)})")


def _texts(entry: Field) -> str:
    """Name the list that a text is scanned with."""
    program = entry.static or entry.keep_path or entry.treatment == "shape"
    return "c.statics" if program else "c.texts"


def _emit_leaf(  # noqa: C901 - one case a treatment
    entry: Field, value: str, out: _Source, *, again: bool = False
) -> None:
    """One field that is no record.

    Args:
        entry: The field.
        value: The expression that holds its value and takes the new one.
        out: Where the lines go.
        again: The value is the contract's own: what was reduced to a class stays as it is.
    """
    call = f"p, {entry.wire!r}"
    loose = bool(entry.accept & {"text", "scalar"}) and not again
    given = f"if {value} is not None"
    if entry.treatment == "shape" and again:
        out(1, f"if {value}: {_texts(entry)}.extend({value})")
    elif entry.treatment == "shape":
        out(1, f"{given}: {value} = c.shape({value}, {call})")
    elif entry.shape == "map":
        out(1, f"{given}: {value} = c.texts_of({value})")
    elif entry.shape == "list":
        out(1, f"if {value}: {_texts(entry)}.extend({value})")
    elif entry.treatment == "redact_text":
        if loose:
            out(1, f"{given} and type({value}) is not str: {value} = text_of({value})")
        safe = f" and not {entry.form}({value})" if entry.form else ""
        out(1, f"if {value}{safe}: {_texts(entry)}.append({value})")
    elif entry.treatment == "reduce_url":
        how = "file" if entry.keep_path else "url"
        out(1, f"if {value}: {value} = c.{how}({value}, {call})")
    elif entry.treatment == "reduce_user_agent":
        if not again:
            out(1, f"if {value}: {value} = c.user_agent({value}, {call})")
    elif entry.treatment == "truncate_ip":
        out(1, f"if {value}: {value} = c.address({value}, {call})")
    elif entry.treatment == "coarsen_time":
        out(1, f"{given}: {value} = c.time({value}, {call})")
    elif entry.values:
        out(1, f"{given}: {value} = c.member(VALUES[{entry.name!r}], {value}, {call})")
    elif entry.shape == "string":
        seen = f"seen_{entry.form}.get({value}) or " if entry.form in MEMOS else ""
        out(1, f"{given}: {value} = {seen}c.formatted({entry.form!r}, {value}, {call})")
    elif loose and entry.shape == "long":
        low, high = entry.minimum, entry.maximum
        out(1, f"{given} and not (type({value}) is int and {low} <= {value} <= {high}):")
        out(2, f"{value} = c.integer({value}, {low}, {high}, {call})")
    elif loose and entry.shape == "boolean":
        out(1, f"{given} and type({value}) is not bool: {value} = c.boolean({value}, {call})")


def _emit_role(entry: Field, value: str, out: _Source) -> bool:
    """The event's own id and time, which the ledger keeps; tells whether the field is one."""
    call = f"p, {entry.wire!r}"
    if entry.role == "event_id":
        out(1, f"if {value} is not None:")
        out(2, f"c.event_id = event_id({value}, {call}, c)")
        out(2, f"{value} = c.event_id or None")
    elif entry.role == "event_time":
        out(1, f"if {value} is not None:")
        out(2, f"c.event_time = c.moment({value})")
        out(2, f"{value} = c.time({value}, {call})")
    return entry.role in ("event_id", "event_time")


def _emit_recheck(record: Record, out: _Source) -> None:
    """Contract → contract: what a later hop does again, in place."""
    out(0, f"def recheck_{record.name}(o, p, c):")
    out(1, "pass")
    for entry in filter(leaves, record.fields):
        value = f"o.{entry.name}"
        if _emit_role(entry, value, out):
            continue
        if entry.record is None:
            _emit_leaf(entry, value, out, again=True)
            continue
        below, how = f"(*p, {entry.wire!r}", f"recheck_{entry.record.name}"
        if entry.shape == "record":
            out(1, f"if {value} is not None: {how}({value}, {below}), c)")
        else:
            out(1, f"if {value}:")
            out(2, f"for n, e in enumerate({value}): {how}(e, {below}, n), c)")


def _emit_slots(record: Record, out: _Source) -> None:
    """Contract → each free text in it, with the place it stands in."""
    out(0, f"def slots_{record.name}(o, p):")
    for entry in filter(leaves, record.fields):
        value, wire = f"o.{entry.name}", entry.wire
        static = _texts(entry) == "c.statics"
        if entry.record is not None:
            below, how = f"(*p, {wire!r}", f"slots_{entry.record.name}"
            if entry.shape == "record":
                out(1, f"if {value} is not None: yield from {how}({value}, {below}))")
            else:
                out(1, f"if {value}:")
                out(2, f"for n, e in enumerate({value}): yield from {how}(e, {below}, n))")
        elif entry.shape == "list":
            out(1, f"if {value}:")
            out(2, f"for n, e in enumerate({value}):")
            out(3, f"yield {value}, n, e, p, ({wire!r}, n), {static}")
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
