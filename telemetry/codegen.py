"""A record's annotations → Python source of its treatments. Text in, text out; runs nothing.

Four functions for each place at which a record stands, as straight lines of code, the way
``dataclasses`` generates ``__init__`` (docs/decisions/0002-generated-treatments.md):

- ``rewrite_PLACE(i, p, c)``: input → contract. `i` is the decoded input, `p` its path, `c` the
  `scrubbers.engine.Ledger`;
- ``recheck_PLACE(o, p, c)``: the contract again, in place, by the policy of today;
- ``slots_PLACE(o, p, t, s, f)``: adds to `f` the place of every free text that is in `t`, and of
  every text of the program that is in `s`;
- ``forms_PLACE(o, p, t, f)``: adds to `f` the place of every text that is kept for its form and in
  `t`.

A record that stands in a list has one place for all its paths, and `p` is given as a pair
(`scrubbers.engine.Path`). Any other stands at one path, which is written into the code, and with it
the remark that a field was removed.

What the source needs by name (types, formats, the ledger's helpers) `telemetry.rules` provides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scrubbers.engine import MEMOS
from telemetry.schema import Field, Record

__all__ = ["leaves", "source_of"]


def source_of(record: Record) -> str:
    """Generate the functions of a record and of all below it; its own are of the place ``root``."""
    out = _Source()
    written: set[str] = set()
    for place in _places(_Place(record, ()), written):
        _emit_rewrite(place, out)
        _emit_recheck(place, out)
        _emit_slots(place, out)
        _emit_forms(place, out)
    return "\n".join((*out.constants, *out.lines))


def leaves(entry: Field) -> bool:
    """Tell whether a field is in the contract: a stripped one, or one that is sealed, is not."""
    return entry.shape != "null"


@dataclass(frozen=True)
class _Place:
    """Where a record stands.

    Attributes:
        record: The record.
        path: Its path from the root; None below a list, where it differs from item to item.
    """

    record: Record
    path: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """Suffix of its functions."""
        if self.path is None:
            return f"each_{self.record.name}"
        return "_".join(("root", *(part.replace("-", "_").replace(".", "_") for part in self.path)))

    def below(self, entry: Field) -> _Place:
        """Give the place of a field's record."""
        assert entry.record is not None  # noqa: S101 - asked of fields that have one
        if self.path is None or entry.shape == "records":
            return _Place(entry.record, None)
        return _Place(entry.record, (*self.path, entry.wire))

    def path_of(self, entry: Field) -> str:
        """Write the path of a field."""
        return f"(p, {entry.wire!r})" if self.path is None else repr((*self.path, entry.wire))

    def whole_path_of(self, entry: Field) -> str:
        """Write the path of a field without pairs."""
        return f"whole(p, {entry.wire!r})" if self.path is None else self.path_of(entry)


def _places(place: _Place, written: set[str]) -> Iterator[_Place]:
    if place.name in written:
        return
    written.add(place.name)
    for entry in place.record.fields:
        if entry.record is not None:
            yield from _places(place.below(entry), written)
    yield place


class _Source:
    """Lines of generated Python, indented, and what stands before them."""

    def __init__(self) -> None:
        self.constants: list[str] = []
        self.lines: list[str] = []

    def __call__(self, depth: int, line: str) -> None:
        self.lines.append("    " * depth + line)

    def removed(self, place: _Place, entry: Field) -> str:
        """Write the remark that a field was removed: once where its path does not change."""
        remark = f"Remark({place.whole_path_of(entry)}, 'strip', 'remove')"
        if place.path is None:
            return remark
        self.constants.append(f"GONE{len(self.constants)} = {remark}")
        return f"GONE{len(self.constants) - 1}"


def _emit_rewrite(place: _Place, out: _Source) -> None:
    """Input → contract: one statement or two for each declared field."""
    record = place.record
    out(0, f"def rewrite_{place.name}(i, p, c):")
    arguments = []
    for entry in record.fields:
        given, call = f"i.{entry.name}", f"p, {entry.wire!r}"
        held = f"{given} is not RAW and (len({given}) > 4 or present({given}))"
        if entry.treatment == "strip" and entry.known:
            gone = out.removed(place, entry)
            out(1, f"if {given} is not None: c.know({entry.known!r}, {given}, {gone})")
            continue
        if entry.treatment == "strip":
            out(1, f"if {held}: c.remarks.append({out.removed(place, entry)})")
            continue
        if entry.treatment == "pseudonymize":
            sort = f"{entry.kind!r}, {entry.kind.partition(':')[0]!r}"
            out(1, f"if {given} is not None: c.identify({sort}, {given})")
            continue
        value = f"v_{entry.name}"
        arguments.append(value)
        if entry.treatment == "shape" and entry.values:
            out(1, f"{value} = among({given}, VALUES[{entry.name!r}])")
            out(1, f"if {value}: {value} = c.shape({value}, {call})")
            out(1, f"elif {held}: c.remarks.append({out.removed(place, entry)})")
            continue
        out(1, f"{value} = {given}")
        if _emit_role(entry, value, out):
            continue
        if entry.record is None:
            _emit_leaf(entry, value, out)
            continue
        how = f"rewrite_{place.below(entry).name}"
        if "list" in entry.accept:
            out(1, f"if type({value}) is list: {value} = In_{entry.record.name}({value})")
        if entry.shape == "record":
            new = f"{how}({value}, {place.path_of(entry)}, c)"
            if place.path is None:
                # Below the items of a list SDKs send many records of which nothing is declared.
                nested = entry.record.name
                new = f"Out_{nested}() if {value} == NOTHING_{nested} else {new}"
            out(1, f"if {value} is not None: {value} = {new}")
        else:
            out(1, f"if {value} is not None:")
            out(2, f"b = {place.whole_path_of(entry)}")
            out(2, f"{value} = [{how}(e, (b, n), c) for n, e in enumerate({value})]")
    out(1, f"return Out_{record.name}({', '.join(arguments)})")


def _is_program(entry: Field) -> bool:
    """Tell whether a text is the program's own: it is not searched for values of the request."""
    return bool(entry.static or entry.keep_path or entry.treatment == "shape")


def _is_compared(entry: Field) -> bool:
    """Tell whether a field's form leaves room for a value of the request."""
    return entry.shape == "string" and bool(entry.form) and entry.form not in _CLOSED_FORMS


_CLOSED_FORMS = frozenset(("level", "declared"))


def _kept_in(entry: Field) -> str:
    """Say which list of the ledger takes a text that is kept for its form."""
    return "c.ids" if entry.form == "hex" else "c.formed"


def _emit_text(entry: Field, value: str, out: _Source) -> None:
    """Have a text, or all texts of a list or map, searched."""
    many = entry.shape in ("list", "map")
    if _is_program(entry):
        quiet = f"QUIET.issuperset({value})" if many else f"{value} in QUIET"
        into = f"c.statics.{'extend' if many else 'append'}({value})"
        out(1, f"if {value} and not {quiet}: {into}")
        return
    if entry.form and not many:
        kept = _kept_in(entry)
        out(1, f"if {value}: ({kept} if {entry.form}({value}) else c.texts).append({value})")
        return
    out(1, f"if {value}: c.texts.{'extend' if many else 'append'}({value})")


def _emit_leaf(  # noqa: C901, PLR0912 - one case a treatment
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
        _emit_text(entry, value, out)
    elif entry.treatment == "shape":
        out(1, f"{given}: {value} = c.shape({value}, {call})")
    elif entry.shape == "map":
        out(1, f"{given}: {value} = c.texts_of({value}, {call})")
    elif entry.shape == "list":
        _emit_text(entry, value, out)
    elif entry.treatment == "redact_text":
        if loose:
            out(1, f"{given} and type({value}) is not str: {value} = text_of({value})")
        _emit_text(entry, value, out)
    elif entry.treatment == "reduce_url" and entry.keep_path:
        out(1, f"if {value} and {value} not in QUIET_FILES: {value} = c.file({value}, {call})")
    elif entry.treatment == "reduce_url":
        out(1, f"if {value}: {value} = c.url({value}, {call})")
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
        out(1, f"{given}:")
        out(2, f"{value} = {seen}c.formatted({entry.form!r}, {value}, {call})")
        if _is_compared(entry):
            out(2, f"if {value} not in PUBLIC_WORDS: {_kept_in(entry)}.append({value})")
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
        out(2, f"{value} = c.happened({value}, {call})")
    return entry.role in ("event_id", "event_time")


def _emit_recheck(place: _Place, out: _Source) -> None:
    """Contract → contract: what a later hop does again, in place."""
    out(0, f"def recheck_{place.name}(o, p, c):")
    out(1, "pass")
    for entry in filter(leaves, place.record.fields):
        value = f"o.{entry.name}"
        if _emit_role(entry, value, out):
            continue
        if entry.record is None:
            _emit_leaf(entry, value, out, again=True)
            continue
        below, how = place.path_of(entry), f"recheck_{place.below(entry).name}"
        if entry.shape == "record":
            out(1, f"if {value} is not None: {how}({value}, {below}, c)")
        else:
            out(1, f"if {value}:")
            out(2, f"b = {place.whole_path_of(entry)}")
            out(2, f"for n, e in enumerate({value}): {how}(e, (b, n), c)")


def _searched_for(record: Record) -> set[str]:
    """Tell what texts stand in a record or below it: ``t``, those of requests; ``s``, programs'."""
    found: set[str] = set()
    for entry in filter(leaves, record.fields):
        if entry.record is not None:
            found |= _searched_for(entry.record)
        elif entry.shape in ("list", "map") or entry.treatment in ("redact_text", "reduce_url"):
            found.add("s" if _is_program(entry) else "t")
    return found


def _emit_slots(place: _Place, out: _Source) -> None:
    """Contract → the places of the texts that are asked for."""
    out(0, f"def slots_{place.name}(o, p, t, s, f):")
    out(1, "pass")
    for entry in filter(leaves, place.record.fields):
        value, wire = f"o.{entry.name}", entry.wire
        static = _is_program(entry)
        asked = "s" if static else "t"
        if entry.record is not None:
            how = f"slots_{place.below(entry).name}"
            wanted = " or ".join(sorted(_searched_for(entry.record)))
            if not wanted:
                continue
            if entry.shape == "record":
                out(1, f"if {value} is not None and ({wanted}):")
                out(2, f"{how}({value}, {place.path_of(entry)}, t, s, f)")
            else:
                out(1, f"if {value} and ({wanted}):")
                out(2, f"b = {place.whole_path_of(entry)}")
                out(2, f"for n, e in enumerate({value}): {how}(e, (b, n), t, s, f)")
        elif entry.shape == "list":
            out(1, f"if {value} and {asked}:")
            out(2, f"for n, e in enumerate({value}):")
            out(3, f"if e in {asked}: f.append(({value}, n, e, p, ({wire!r}, n), {static}))")
        elif entry.shape == "map":
            out(1, f"if {value} and {asked}:")
            out(2, f"for k in {value}:")
            out(3, f"if k in {asked}: f.append(({value}, KEY, k, p, ({wire!r},), {static}))")
            if entry.treatment != "shape":
                out(2, f"for k, e in {value}.items():")
                found = f"e in {asked} or beside(k, e) in {asked}"
                out(3, f"if {found}: f.append(({value}, k, e, p, ({wire!r}, k), {static}))")
        elif entry.treatment in ("redact_text", "reduce_url"):
            safe = f" and not {entry.form}({value})" if entry.form else ""
            place_of = f"(o, {entry.name!r}, {value}, p, ({wire!r},), {static})"
            out(1, f"if {value} in {asked}{safe}: f.append({place_of})")


def _emit_forms(place: _Place, out: _Source) -> None:
    """Contract → the places of texts that are kept for their form; run on few events."""
    out(0, f"def forms_{place.name}(o, p, t, f):")
    out(1, "pass")
    for entry in filter(leaves, place.record.fields):
        value, wire = f"o.{entry.name}", entry.wire
        if entry.record is not None:
            how = f"forms_{place.below(entry).name}"
            if entry.shape == "record":
                below = place.path_of(entry)
                out(1, f"if {value} is not None: {how}({value}, {below}, t, f)")
            else:
                out(1, f"b = {place.whole_path_of(entry)}")
                out(1, f"for n, e in enumerate({value} or ()): {how}(e, (b, n), t, f)")
        elif _is_compared(entry):
            out(
                1, f"if {value} in t: f.append((o, {entry.name!r}, {value}, p, ({wire!r},), False))"
            )
