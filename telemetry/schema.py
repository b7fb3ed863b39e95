"""``schemas/*.avsc``: read, checked, and held as `Record`s. Owns what an annotation means.

Every field of every record says what class of data it is and what is done to it. A field without
that, an unknown word, or a treatment that does not fit its type stops the start, with file and
line. How a record is made to run stands in `telemetry.rules`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scrubbers.engine import FORMATS
from telemetry.errors import SchemaError
from telemetry.policy import schemas_dir

__all__ = ["CLASSES", "LONGEST_INT", "TREATMENTS", "Field", "Record", "load_records"]

CLASSES: Final = frozenset(("identifier", "quasi_identifier", "free_text", "technical"))
TREATMENTS: Final = frozenset(
    (
        "keep",
        "pseudonymize",
        "truncate_ip",
        "reduce_user_agent",
        "reduce_url",
        "redact_text",
        "coarsen_time",
        "shape",
        "strip",
    )
)
_ACCEPTS: Final = frozenset(("text", "scalar", "list", "pairs"))
_ROLES: Final = frozenset(("event_id", "event_time", "event_name"))
_PARAMETERS: Final = frozenset(
    (
        "class",
        "treatment",
        "known",
        "kind",
        "format",
        "keep_path",
        "static",
        "role",
        "maximum",
        "declared_by",
        "keys",
    )
)
_SCALARS: Final = frozenset(("string", "long", "double", "boolean"))
LONGEST_INT: Final = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a record with its annotation.

    Attributes:
        name: Avro name. wire: Key in JSON. shape: ``string``, ``long``, ``double``, ``boolean``,
            ``null``, ``map``, ``list`` (of text), ``records`` or ``record``.
        record: The nested record, for ``record`` and ``records``.
        privacy: Class of the data (`CLASSES`). treatment: What is done to it (`TREATMENTS`).
        static: It is text of the program (a source line, a function), not of a request.
        form: What a kept text must look like (`scrubbers.engine.FORMATS`); beside ``redact_text``,
            what needs no scan.
        values: What an enum allows; beside ``shape``, the keys whose class stays.
        keys: Name of a list in treatments.toml, ``[shape]``: of what is stripped here, the type
            classes of the values of these keys stay. With an empty list nothing does.
    """

    name: str
    wire: str
    shape: str
    privacy: str
    treatment: str
    doc: str = ""
    record: Record | None = None
    accept: frozenset[str] = frozenset()
    known: str = ""
    kind: str = ""
    form: str = ""
    keep_path: bool = False
    static: bool = False
    role: str = ""
    minimum: int = -LONGEST_INT
    maximum: int = 2**31 - 1
    declared_by: str = ""
    keys: str = ""
    values: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record: a closed list of fields."""

    name: str
    fields: tuple[Field, ...]
    doc: str = ""


class _Reader:
    """Reads one ``.avsc`` file and refuses what it cannot enforce, with file and line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = path.read_text("utf-8")
        self._named: dict[str, Record] = {}
        self._place = 0

    def read(self) -> Any:
        """Read the file as JSON."""
        try:
            raw = json.loads(self._text)
        except ValueError as error:
            line = re.search(r"line (\d+)", str(error))
            raise SchemaError(
                "is no JSON.",
                path=self._path,
                line=int(line[1]) if line else None,
                remedy="Correct it.",
            ) from None
        return raw

    def compile(self) -> Record:
        """Read a record that describes JSON: its annotations and its types."""
        return self._record(self.read())

    def check_annotations(self) -> None:
        """Read a record that is written as Avro itself: its annotations only."""
        pending = [self.read()]
        for record in pending:
            for entry in record["fields"]:
                self._note(entry)
                if isinstance(entry["type"], dict) and entry["type"]["type"] == "array":
                    pending.append(entry["type"]["items"])

    def _refuse(self, what: str, remedy: str) -> SchemaError:
        line = self._text.count("\n", 0, self._place) + 1
        return SchemaError(what, path=self._path, line=line, remedy=remedy)

    def _record(self, raw: Mapping[str, Any]) -> Record:
        self._named[raw["name"]] = Record(name=raw["name"], fields=())  # a recursive use finds this
        fields = tuple(self._field(entry) for entry in raw["fields"])
        record = Record(name=raw["name"], fields=fields, doc=raw.get("doc", ""))
        self._named[record.name] = record
        return record

    def _note(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Check the annotation of one field and give it."""
        # Fields are read in the order in which they are written, so the next one stands behind.
        found = self._text.find(json.dumps({"name": raw["name"]})[1:-1], self._place)
        self._place = found if found >= 0 else self._place
        name, note = raw["name"], raw.get("privacy")
        if not isinstance(note, dict) or "class" not in note or "treatment" not in note:
            raise self._refuse(
                f"field {name!r} has no privacy annotation.",
                'Add "privacy": {"class": …, "treatment": …}: a field without one may not exist.',
            )
        for what, value, allowed in (
            ("class", [note["class"]], CLASSES),
            ("treatment", [note["treatment"]], TREATMENTS),
            ("annotation", list(note), _PARAMETERS),
            ("accept", raw.get("accept", []), _ACCEPTS),
            ("format", [note["format"]] if "format" in note else [], FORMATS.keys()),
            ("role", [note["role"]] if "role" in note else [], _ROLES),
        ):
            if unknown := [item for item in value if item not in allowed]:
                raise self._refuse(
                    f"field {name!r} has the unknown {what} {unknown[0]!r}.",
                    f"Use one of: {', '.join(sorted(allowed))}.",
                )
        return note

    def _field(self, raw: Mapping[str, Any]) -> Field:
        name, note = raw["name"], self._note(raw)
        shape, nested = self._shape(raw["type"], name)
        result = Field(
            name=name,
            wire=raw.get("json", name),
            shape=shape,
            record=nested,
            privacy=note["class"],
            treatment=note["treatment"],
            doc=raw.get("doc", ""),
            accept=frozenset(raw.get("accept", ())),
            known=note.get("known", ""),
            kind=note.get("kind", ""),
            form=note.get("format", ""),
            keep_path=note.get("keep_path", False),
            static=note.get("static", False),
            role=note.get("role", ""),
            maximum=note.get("maximum", 2**31 - 1),
            declared_by=note.get("declared_by", ""),
            keys=note.get("keys", ""),
        )
        if problem := _misfit(result):
            raise self._refuse(f"field {name!r} {problem[0]}.", problem[1])
        return result

    def _shape(self, avro: Any, name: str) -> tuple[str, Record | None]:
        if isinstance(avro, list):
            others = [item for item in avro if item != "null"]
            avro = others[0] if len(others) == 1 else None
        if isinstance(avro, str):
            if avro in _SCALARS or avro == "null":
                return avro, None
            if (record := self._named.get(avro)) is not None:
                if record.fields:
                    return "record", record
                raise self._refuse(
                    f"field {name!r} is recursive.",
                    "Flatten it: a recursive record can exhaust its reader.",
                )
        if isinstance(avro, dict):
            if avro["type"] == "record":
                return "record", self._record(avro)
            if avro["type"] == "map" and avro["values"] == "string":
                return "map", None
            if avro["type"] == "array":
                shape, record = self._shape(avro["items"], name)
                if shape == "record":
                    return "records", record
                if shape == "string":
                    return "list", None
        raise self._refuse(
            f"field {name!r} has a type we do not compile.",
            "Use string, long, double, boolean, null, a record, or an array or map of them.",
        )


def _misfit(entry: Field) -> tuple[str, str] | None:
    """Say what is wrong with the combination of type and treatment, and what to do."""
    gone = ("strip", "pseudonymize")
    if (entry.treatment in gone) != (entry.shape == "null"):
        return (
            f"has treatment {entry.treatment!r} and type {entry.shape!r}",
            'A field that does not leave has type "null"; one that does needs another treatment.',
        )
    if entry.treatment == "pseudonymize" and not entry.kind:
        return "is pseudonymized without a kind", 'Add "kind": a name from pseudonyms.toml.'
    if entry.keys and (entry.treatment != "strip" or entry.known):
        return "has a list of keys and is not stripped", 'Use "strip", without "known".'
    if entry.treatment == "keep" and entry.shape == "string" and not entry.form:
        return (
            "is text that is kept as it is",
            'Add "format" (what it may look like), or use "redact_text".',
        )
    fits = {
        "redact_text": ("string", "list", "map"),
        "shape": ("map",),
        "keep": ("string", "long", "double", "boolean", "record", "records"),
    }.get(entry.treatment, ("string", "null"))
    if entry.shape not in fits:
        return (
            f"has treatment {entry.treatment!r}, which does not fit type {entry.shape!r}",
            f"That treatment fits: {', '.join(fits)}.",
        )
    return None


def load_records(folder: Path | None = None) -> dict[str, Record]:
    """Read all records under ``schemas/``, by file name without ending.

    Raises:
        SchemaError: A field lacks an annotation or has one that cannot be enforced.
    """
    folder = folder or schemas_dir()
    paths = sorted(folder.glob("*.avsc"))
    if not paths:
        raise SchemaError("holds no schema.", path=folder, remedy="Install the package again.")
    records: dict[str, Record] = {}
    for path in paths:
        reader = _Reader(path)
        # The batch is Avro on the wire, not JSON: it has annotations to check but nothing to scrub.
        if path.stem == "batch":
            reader.check_annotations()
        else:
            records[path.stem] = reader.compile()
    return records
