"""One event from bytes to bytes: decode by type, treat each field, redact the free text, encode.

This is the way of an event through ``scrubbers``, in order: `scrub` decodes what the rules declare
(the rest never becomes an object), has them rewrite it field by field into the contract's type with
the treatments of a `Ledger`, scans all free text at once, and encodes. Which field gets which
treatment is compiled from ``schemas/*.avsc`` (`telemetry.schema`); this module knows no field.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate, islice
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

from scrubbers.address import AddressProfile, truncate_ip
from scrubbers.detectors import SEPARATOR, Detectors, searchable
from scrubbers.known_values import PADDING, KnownValues
from scrubbers.model import AddressError, Remark, Scrubbed
from scrubbers.text import Numbering, redact_suspect
from scrubbers.time import coarsen_time
from scrubbers.url import reduce_url
from scrubbers.user_agent import reduce_user_agent
from scrubbers.validators import NO_PERSON

__all__ = [
    "FORMATS",
    "KEY",
    "PUBLIC_WORDS",
    "RULES",
    "Ledger",
    "Outcome",
    "Quiet",
    "Rules",
    "Slot",
    "Treatments",
    "beside",
    "rescrub",
    "scrub",
    "whole",
]

KEY: Final = object()
"""In a `Slot`: the text is a key of an open map, not a value."""

Path = tuple[Any, ...]
"""Names and indexes from the root. Of a record below a list it may be a pair instead: the path of
what holds the record, and a name or index. Most records change nothing, and need none written out;
`whole` does that."""
Slot = tuple[Any, Any, str, Path, tuple[str | int, ...], bool]
"""Owner (object, list or dict), attribute or index, text, path of the record, rest of the path, and
whether it is text of the program (see `Ledger.statics`)."""


class Quiet:
    """Texts of programs that were searched and hold nothing: source lines, functions, files.

    An application raises its errors from the same lines again and again. What is known to hold
    nothing goes out as it came in, and is neither searched nor worked on a second time. Of no use
    to values of requests: they are not looked for in these texts (`Ledger.statics`).
    """

    __slots__ = ("files", "texts")

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.files: set[str] = set()

    def __repr__(self) -> str:
        return f"Quiet({len(self.texts)} texts, {len(self.files)} files)"

    def learn(self, texts: list[str], files: list[str], loud: Collection[str]) -> None:
        """Keep what is not among the suspects, up to some 10 MB."""
        for memory, seen in ((self.texts, texts), (self.files, files)):
            if len(memory) > _QUIET_TEXTS:
                memory.clear()
            memory.update(t for t in seen if len(t) <= _QUIET_LENGTH and t not in loud)


_QUIET_TEXTS: Final = 32_768
# Texts of an event that are rewritten one by one; a real one has some dozens.
_EVENT_TEXTS: Final = 1_024
_QUIET_LENGTH: Final = 200


RULES: Final = frozenset(
    (
        "identifier",
        "known_value",
        "reduce_url",
        "reduce_user_agent",
        "shape",
        "strip",
        "truncate_ip",
        "type",
        "unsettled",
    )
)
"""Rules of remarks beside the ids of detectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatments:
    """What the treatments of one kind of event need to know.

    Attributes:
        detectors: The table of what counts as personal or secret in free text.
        address_profile: How much of an address stays.
        grain_s: Seconds to which times are rounded down.
        user_agents: Reduce user agents here; else they are passed to a later hop as they are,
            which only the SDK does, over loopback or TLS (it has no user-agent parser).
        quiet: What these detectors found nothing in; each object has its own.
        seconds: Seconds of a minute as text, as they are and rounded down. Empty if the grid does
            not begin anew each minute.
    """

    detectors: Detectors
    address_profile: AddressProfile
    grain_s: float
    user_agents: bool = True
    quiet: Quiet = field(default_factory=Quiet, repr=False, compare=False)
    seconds: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        grain = self.grain_s
        regular = range(60) if grain >= 1 and not (grain % 1 or 60 % grain) else ()
        seconds = {f"{at:02d}": f"{at - at % int(grain):02d}" for at in regular}
        object.__setattr__(self, "seconds", seconds)


class Rules(Protocol):
    """What `telemetry.schema` compiles from one record."""

    treatments: Treatments

    def decode(self, raw: bytes, ledger: Ledger) -> Any:
        """Read foreign JSON. Raises an error that repeats nothing of it."""

    def rewrite(self, event: Any, path: Path, ledger: Ledger) -> Any:
        """Treat each field; give the contract's object."""

    def reread(self, body: bytes) -> Any:
        """Read JSON of the contract itself; strict."""

    def recheck(self, contract: Any, path: Path, ledger: Ledger) -> None:
        """Treat a contract's object again, in place, by the policy of today."""

    def slots(self, contract: Any, texts: Collection[str], statics: Collection[str]) -> list[Slot]:
        """Where some of the object's free texts stand, in the order of its fields."""

    def forms(self, contract: Any, texts: Collection[str]) -> list[Slot]:
        """Where some of the texts stand that are kept for their form (`Ledger.formed`)."""

    def encode(self, contract: Any) -> bytes:
        """Write the contract's object as JSON."""


class Outcome(NamedTuple):
    """What became of one event.

    Attributes:
        event: JSON of the closed record.
        remarks: What was changed and why.
        identifiers: (kind, raw id) of whom it concerns: to be sealed, never stored.
        event_id: The client's own id, 32 hex digits, or empty.
        event_time: When it happened, UTC, coarsened; None if it did not say.
    """

    event: Scrubbed
    remarks: list[Remark]
    identifiers: list[tuple[str, str | int]]
    event_id: str
    event_time: datetime | None


_EMPTY: Final = frozenset(("", "null", "None", "[Filtered]"))
_LEVELS: Final = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "fatal"}
# An id, an address of memory, or a UUID with what SDKs add to it. Twelve to nineteen digits alone
# are as likely a card or a telephone.
_HEX = re.compile(
    r"(?:0x)?(?![0-9]{12,19}\Z)[0-9a-fA-F]{1,64}"
    r"|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?:-[0-9a-fA-F]{1,8})?"
)
_NAME = re.compile(r"[A-Za-z_](?:[A-Za-z_.:/-]|[0-9](?![0-9]{7})){0,63}|[0-9]{1,15}")
# name@version as Sentry has it, or a version or commit alone. What is not of this form is redacted:
# an address could stand there.
_RELEASE = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9_./-]{0,63}@)?(?:v?[0-9]{1,8}(?:\.[0-9]{1,8}){0,4}(?:[-+][0-9A-Za-z.-]{1,40})?"
    r"|[0-9a-f]{40})"
)
_METHOD = re.compile(r"[A-Za-z]{1,16}")
_LEVEL = re.compile(r"fatal|critical|error|warning|warn|info|log|debug|trace|[1-5]0")
# Years 1970 to 2199; days are not checked against their month: nothing is counted with this text.
_UTC_TEXT = re.compile(
    r"(?:19[7-9]\d|2[01]\d\d)-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])T(?:[01]\d|2[0-3]):[0-5]\d"
    r":[0-5]\d(?:\.\d{1,9})?(?:Z|\+00:00)",
    re.ASCII,
)
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.]{0,63}")


def _level(text: str) -> str | None:
    if not _LEVEL.fullmatch(text):
        return None
    return (
        _LEVELS[int(text)]
        if text.isdigit()
        else {"critical": "fatal", "warn": "warning"}.get(text, text)
    )


def _matching(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    return lambda text: text if pattern.fullmatch(text) else None


class _Memo(dict[str, str]):
    """Remembers texts that have a form, so that the few words of a field cost one look-up.

    A text that does not have it is not kept: it could be anything.
    """

    def __init__(self, form: Callable[[str], str | None]) -> None:
        super().__init__()
        self._form = form

    def read(self, text: str) -> str | None:
        """Give the text in its form, or None."""
        known = self.get(text)
        if known is not None:
            return known
        fitting = self._form(text)
        if fitting is not None and len(self) < _MEMO:
            self[text] = fitting
        return fitting


_MEMO: Final = 1024
# No client gives an event so many tags; whoever does would have each of them searched three times.
_MAP_ENTRIES: Final = 1_000

MEMOS: Final[Mapping[str, _Memo]] = {
    "name": _Memo(_matching(_NAME)),
    "method": _Memo(_matching(_METHOD)),
    "level": _Memo(_level),
    "release": _Memo(_matching(_RELEASE)),
}
"""Formats of fields that have few words; generated code looks there first."""

PUBLIC_WORDS: Final[frozenset[str | None]] = frozenset(
    """
    GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT QUERY get head post put patch delete
    options trace connect query as3 c cfml cocoa csharp dart elixir erlang flutter go groovy
    haskell java javascript kotlin native node objc other perl php python ruby rust scala swift
    unity unreal default error event transaction generic http https navigation info debug user ui
    console route custom url view component task manual auto ok unknown string integer double
    boolean array
    """.split()  # noqa: SIM905 - a table of words reads better unbroken
) | {None}
"""What stays in its field also if a person is called so: Java stays a platform for Ms Java. Words
of Sentry's and HTTP's own vocabularies, which say nothing about anybody. Nothing stays as well."""

FORMATS: Final[Mapping[str, Callable[[str], str | None]]] = {
    **{name: memo.read for name, memo in MEMOS.items()},
    # Ids differ from event to event: remembering them would only fill the memory.
    "hex": _matching(_HEX),
    # The caller has compared the text with a list already: names of declared analytics events.
    "declared": lambda text: text,
}
"""What a kept text may look like. A text that is not redacted needs one: else it is not kept."""


class Ledger:
    """Treatments of one event, and what they leave behind. Lives as long as that event's scrub."""

    __slots__ = (
        "client_address",
        "event_id",
        "event_time",
        "files",
        "formed",
        "identifiers",
        "ids",
        "known",
        "remarks",
        "statics",
        "texts",
        "treatments",
    )

    def __init__(self, treatments: Treatments, client_address: str | None = None) -> None:
        self.treatments = treatments
        self.client_address = client_address
        self.texts: list[str] = []
        # Text of the program itself: source lines, functions, files. Detectors look at it, but the
        # request's own values are not looked for: account 4711 must not change a line that says
        # 4711, or one error would become as many as there are accounts.
        self.statics: list[str] = []
        self.files: list[str] = []
        # Texts that stay because they are of their field's form. No detector looks at them; the
        # request's own values may not stand in them all the same.
        self.formed: list[str] = []
        self.ids: list[str] = []  # those of them that are hexadecimal
        self.remarks: list[Remark] = []
        self.identifiers: list[tuple[str, str | int]] = []
        self.known: list[tuple[str, str]] = []
        self.event_id = ""
        self.event_time: datetime | None = None

    def strip(self, path: Path, name: str) -> None:
        """Note that a declared payload was there and is gone."""
        self.remarks.append(Remark(whole(path, name), "strip", "remove"))

    def invalid(self, path: Path, name: str) -> None:
        """Note that a value did not fit its type and is gone."""
        self.remarks.append(Remark(whole(path, name), "type", "invalid"))

    def know(self, kind: str, value: Any, remark: Remark) -> None:
        """Take a value out of the event and look for it everywhere else in it."""
        text = value if type(value) is str else str(value)
        if text in _EMPTY:
            return
        if kind == "ip" and "," in text:
            self.known.extend((kind, part.strip()) for part in text.split(",") if part.strip())
        elif kind == "secret" and " " in text:
            self.known.append((kind, text.rpartition(" ")[2]))
            self.known.extend(named_by(text))
        else:
            self.known.append((kind, text))
        self.remarks.append(remark)

    def identify(self, kind: str, word: str, value: str | int) -> None:
        """Take an identifier out of the event, to be sealed for the pseudonymizer."""
        if value == "":
            return
        self.identifiers.append((kind, value))
        self.known.append((word, str(value)))

    def formatted(self, form: str, value: Any, path: Path, name: str) -> str | None:
        """Keep a technical text only in its declared form."""
        text = FORMATS[form](value if type(value) is str else str(value))
        if text is None:
            self.invalid(path, name)
        return text

    def member(self, values: frozenset[str], value: str, path: Path, name: str) -> str | None:
        """Keep a text only if it is on the list."""
        if value in values:
            return value
        self.invalid(path, name)
        return None

    def integer(self, value: Any, minimum: int, maximum: int, path: Path, name: str) -> int | None:
        """Read a whole number that may come as text or with a fraction of zero."""
        try:
            number = int(value)
        except (ValueError, OverflowError):
            number = maximum + 1
        if minimum <= number <= maximum:
            return number
        self.invalid(path, name)
        return None

    def boolean(self, value: Any, path: Path, name: str) -> bool | None:
        """Read a truth value that may come as text or number."""
        if value in (True, "true", "True", "1"):
            return True
        if value in (False, "false", "False", "0"):
            return False
        self.invalid(path, name)
        return None

    def address(self, value: str, path: Path, name: str) -> str | None:
        """Cut an address; ``{{auto}}`` stands for whoever connected."""
        if value == "{{auto}}":
            if self.client_address is None:
                return None
            value = self.client_address
        try:
            prefix = truncate_ip(value, profile=self.treatments.address_profile)
        except AddressError:
            self.invalid(path, name)
            return None
        if prefix != value:
            self.known.append(("ip", value))
            self.remarks.append(Remark(whole(path, name), "truncate_ip", "reduce"))
        return prefix or None

    def url(self, value: str, path: Path, name: str) -> str | None:
        """Reduce a URL to its template; what is left is still scanned as text."""
        reduced = reduce_url(value)
        if reduced != value:
            if "@" in value and (login := _LOGIN.match(value)):
                self.known.extend(_credentials(login[1], login[2] or ""))
            self.remarks.append(Remark(whole(path, name), "reduce_url", "reduce"))
        if not reduced:
            return None
        self.texts.append(reduced)
        return reduced

    def file(self, value: str, path: Path, name: str) -> str | None:
        """Take users and queries out of a file's path or URL; the rest of the path stays."""
        reduced = reduce_url(value, keep_path=True)
        if reduced != value:
            self.remarks.append(Remark(whole(path, name), "reduce_url", "reduce"))
        if not reduced:
            return None
        self.statics.append(reduced)
        if reduced == value:
            self.files.append(value)
        return reduced

    def user_agent(self, value: str, path: Path, name: str) -> str | None:
        """Keep browser family and major version, system family and device class."""
        if not self.treatments.user_agents:
            return value
        reduced = reduce_user_agent(value)
        if reduced != value:
            self.remarks.append(Remark(whole(path, name), "reduce_user_agent", "reduce"))
        return reduced

    def time(self, value: str | float, path: Path, name: str) -> str | None:
        """Round a time down to the policy's grain.

        Takes RFC 3339 text (without an offset: UTC, as Sentry defines it) or seconds since 1970.
        """
        # What SDKs write most, many times in an event, is cut as text.
        if type(value) is str:
            second = self.treatments.seconds.get(value[17:19])
            if second is not None and _UTC_TEXT.fullmatch(value):
                return f"{value[:17]}{second}Z"
        at = self.moment(value)
        if at is None:
            self.invalid(path, name)
            return None
        return at.isoformat().replace("+00:00", "Z")

    def happened(self, value: str | float, path: Path, name: str) -> str | None:
        """As `time`, for the time of the event itself."""
        text, self.event_time = self.time(value, path, name), None
        if text is not None:
            with suppress(ValueError):  # the 31st of a month that has no such day
                self.event_time = datetime.fromisoformat(text)  # on the grid already
        return text

    def moment(self, value: str | float) -> datetime | None:
        """Read a time and round it down, or give None if it is none."""
        try:
            if type(value) is str:
                at = datetime.fromisoformat(value)
                at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
            else:
                at = datetime.fromtimestamp(float(value), UTC)
            return coarsen_time(at, seconds=self.treatments.grain_s)
        except (ValueError, OverflowError, OSError):
            return None

    def texts_of(self, value: Mapping[str, Any], path: Path, name: str) -> dict[str, str]:
        """Read an open map of scalars; keys and values are free text."""
        if len(value) > _MAP_ENTRIES:
            value = dict(islice(value.items(), _MAP_ENTRIES))
            self.invalid(path, name)
        plain = {
            key: item
            if type(item) is str
            else "true"
            if item is True
            else "false"
            if item is False
            else str(item)
            for key, item in value.items()
            if item is not None
        }
        self.texts.extend(plain)
        self.texts.extend(plain.values())
        self.texts.extend(beside(key, item) for key, item in plain.items())
        return plain

    def shape(self, value: Mapping[str, Any], path: Path, name: str) -> dict[str, str] | None:
        """Keep the names of variables and the class of their values, never content or length."""
        if not value:
            return None
        if not _VARIABLES.issuperset(value):
            value = {_variable(key): item for key, item in value.items()}
        # A frame has some ten variables, and an event some twenty frames.
        of_text, of_start, of_type = _SHAPE_BY_TEXT.get, _SHAPE_BY_START.get, _SHAPE_BY_TYPE.get
        shapes = {
            key: of_text(item) or of_start(item[:1], "text")
            if type(item) is str
            else of_type(type(item), "number")
            if item
            else _SHAPE_OF_NOTHING[type(item)]
            for key, item in value.items()
        }
        if not self.treatments.quiet.texts.issuperset(shapes):
            self.statics.extend(shapes)
        self.remarks.append(Remark(whole(path, name), "shape", "reduce"))
        return shapes


_LOGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}://([^/?#@:\s]{1,200})(?::([^/?#@\s]{0,200}))?@")
_MIN_LOGIN: Final = 4
_DIGEST = re.compile(r"""(?i)\busername=(?:"([^"]{1,200})"|([^\s",]{1,200}))""")


def named_by(authorization: str) -> list[tuple[str, str]]:
    """Give who logs in by an ``Authorization`` header, and with what.

    Source:
        RFC 7617, 2: Base64 of name and password; RFC 7616, 3.4: ``username``.
    """
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "digest" and (found := _DIGEST.search(rest)):
        return _credentials(found[1] or found[2], "")
    if scheme.lower() != "basic":
        return []
    try:
        name, colon, password = b64decode(rest).decode("utf-8", "replace").partition(":")
    except ValueError:
        return []
    return _credentials(name, password) if colon else []


def _credentials(name: str, password: str) -> list[tuple[str, str]]:
    """Give the known values of a login; a service's name is none: `git` stands in many texts.

    Nor is what has fewer than four characters: an address can name any number of logins, and short
    ones are looked for beside each word that could announce an id.
    """
    pairs = (("username", unquote(name)), ("secret", unquote(password)))
    return [
        (kind, text)
        for kind, text in pairs
        if len(text) >= _MIN_LOGIN and text.lower().encode() not in NO_PERSON
    ]


def beside(name: str, value: str) -> str:
    """Write a value as a detector of cues reads it: ``username=jdoe``."""
    return f"{name}={value}"


def whole(path: Path, name: str | int) -> tuple[str | int, ...]:
    """Write a path out as names and indexes."""
    if not path or type(path[0]) is not tuple:
        return (*path, name)
    above, part = path
    return (*whole(above, part), name)


_VARIABLES: Final[set[str]] = set()
"""Names of variables that are shown as they are."""


def _variable(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        return "<key>"
    if len(_VARIABLES) < _MEMO:
        _VARIABLES.add(name)
    return name


_SHAPES: Final = ("null", "bool", "number", "text", "list", "map", "object", "empty")
# SDKs send locals as their ``repr``: a text that shows by its beginning what it is of.
_SHAPE_BY_TEXT: Final[Mapping[str, str]] = {
    **{shape: shape for shape in _SHAPES},
    **dict.fromkeys(("None", "null", "undefined"), "null"),
    **dict.fromkeys(("True", "False"), "bool"),
    **dict.fromkeys(("", "''", '""', "[]", "{}", "()"), "empty"),
    "[Filtered]": "text",  # what sentry-sdk writes for a name it knows
}
_SHAPE_BY_START: Final[Mapping[str, str]] = {
    **dict.fromkeys("-0123456789", "number"),
    **dict.fromkeys("[(", "list"),
    "{": "map",
    "<": "object",
}


_SHAPE_BY_TYPE: Final[Mapping[type, str]] = {bool: "bool", list: "list", dict: "map"}
_SHAPE_OF_NOTHING: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "bool",
    list: "empty",
    dict: "empty",
    int: "number",
    float: "number",
}


def scrub(
    raw: bytes,
    rules: Rules,
    *,
    known: Sequence[tuple[str, str]] = (),
    client_address: str | None = None,
    event_id: str = "",
) -> Outcome:
    """Scrub one event: the only way to make a `Scrubbed`.

    Args:
        raw: Foreign JSON of one event.
        rules: Compiled from the record that describes it.
        known: (kind, value) pairs that the request is known to hold and that may appear nowhere.
        client_address: Who connected, for events that ask to have it filled in.
        event_id: The id that stands beside the event, 32 hex digits, if one does; it goes before
            the event's own, and neither may hold a known value.

    Returns:
        The event in its closed schema, with what was done to it.

    Raises:
        EventError: It cannot be read, or a text could not be made safe.
        OverflowError: It names more identifiers than can be looked for.
    """
    ledger = Ledger(rules.treatments, client_address)
    ledger.known.extend(known)
    contract = rules.rewrite(rules.decode(raw, ledger), (), ledger)
    if event_id:
        ledger.event_id = event_id
    _redact(contract, rules, ledger)
    return _outcome(contract, rules, ledger)


def rescrub(body: Scrubbed, rules: Rules, *, known: Sequence[tuple[str, str]] = ()) -> Outcome:
    """Scrub an event of the contract once more, by the policy of today.

    Scrubbing twice changes nothing; under a stricter policy it removes what that no longer allows.
    """
    ledger = Ledger(rules.treatments)
    ledger.known.extend(known)
    contract = rules.reread(body)
    rules.recheck(contract, (), ledger)
    _redact(contract, rules, ledger)
    return _outcome(contract, rules, ledger)


def _outcome(contract: Any, rules: Rules, ledger: Ledger) -> Outcome:
    return Outcome(
        Scrubbed(rules.encode(contract)),
        ledger.remarks,
        ledger.identifiers,
        ledger.event_id,
        ledger.event_time,
    )


def _redact(contract: Any, rules: Rules, ledger: Ledger) -> None:
    """Scan all free text in one pass; only where something may be, go text by text."""
    treatments = rules.treatments
    detectors = treatments.detectors
    joined = SEPARATOR.join(ledger.texts)
    known = _known(joined, contract, rules, ledger) if ledger.known else None
    texts, known = _suspects(ledger.texts, joined, detectors, known)
    statics: Collection[str] = ()
    if ledger.statics:
        joined = SEPARATOR.join(ledger.statics)
        statics, _ = _suspects(ledger.statics, joined, detectors, None)
        treatments.quiet.learn(ledger.statics, ledger.files, statics)
    if not texts and not statics:
        return
    numbering = Numbering()
    changed = 0
    for owner, key, text, path, tail, static in rules.slots(contract, texts, statics):
        if type(owner) is dict and key is not KEY and key not in owner:
            continue  # it went with its name
        where = (*whole(path, tail[0]), *tail[1:])
        if changed >= _EVENT_TEXTS:
            # Data, not messages: nothing of what may hold something stays, and nothing is searched.
            if key is KEY:
                owner.pop(text, None)
                ledger.remarks.append(Remark((*where, "<key>"), "unsettled", "remove"))
            elif type(owner) is list or type(owner) is dict:
                owner[key] = "<redacted>"
            else:
                setattr(owner, key, "<redacted>")
            changed += 1
            if changed < 2 * _EVENT_TEXTS:  # who reads more of the same?
                ledger.remarks.append(Remark(where, "unsettled", "replace", 0, len("<redacted>")))
            continue
        changed += 1
        if type(owner) is dict and key is not KEY:
            given_away = _given_away(key, text, detectors, numbering)
            if given_away is not None:
                owner[key], rule = given_away
                ledger.remarks.append(Remark(where, rule, "replace", 0, len(owner[key])))
                continue
        # Text of the program is numbered by itself: if numbers went on from the message, a source
        # line would read differently for each person, and Sentry groups by source lines.
        redacted, remarks = redact_suspect(
            text, detectors, None if static else known, Numbering() if static else numbering, where
        )
        if not remarks:
            continue
        if key is KEY:
            # The name of an entry cannot be shown once it was personal: the entry goes.
            owner.pop(text, None)
            ledger.remarks.append(Remark((*where, "<key>"), remarks[0].rule, "remove"))
            continue
        if type(owner) is list or type(owner) is dict:
            owner[key] = redacted
        else:
            setattr(owner, key, redacted)
        ledger.remarks.extend(remarks)


def _known(joined: str, contract: Any, rules: Rules, ledger: Ledger) -> KnownValues | None:
    """Give the values to look for in texts; None if they stand in none, as in most events.

    Fields whose text, though of its form, holds one of them are taken out.
    """
    known = KnownValues(ledger.known)
    ids, formed = SEPARATOR.join((*ledger.ids, ledger.event_id)), SEPARATOR.join(ledger.formed)
    filled = PADDING in ids or PADDING in formed or known.may_fill(ids)
    # One search of all there is costs less than one of each sort.
    if not filled and joined.isascii() and not known.may_stand_in(joined + SEPARATOR + formed):
        return None
    if filled or known.may_stand_in(formed):
        held = known.in_forms({*ledger.formed, *ledger.ids, ledger.event_id})
        for owner, name, _, path, tail, _ in rules.forms(contract, held) if held else ():
            setattr(owner, name, None)
            where = (*whole(path, tail[0]), *tail[1:])
            ledger.remarks.append(Remark(where, "known_value", "remove"))
        if ledger.event_id in held:
            ledger.event_id = ""
    return known


def _given_away(
    name: str, value: str, detectors: Detectors, numbering: Numbering
) -> tuple[str, str] | None:
    """Tell what a value is that only its name shows to be personal, and which rule says so.

    A value that has a shape of its own (an address) is left to the search of its text: the name
    would take more than that along.
    """
    at = len(searchable(f"{name}=").encode())
    told = redact_suspect(beside(name, value), detectors, None, Numbering())[1]
    if not told or told[0].start != at:
        return None
    own = redact_suspect(value, detectors, None, Numbering())[1]
    if own and own[0].start == 0:
        return None
    redacted, remarks = redact_suspect(beside(name, value), detectors, None, numbering)
    placeholder = redacted.encode()[remarks[0].start : remarks[0].end].decode()
    return placeholder, remarks[0].rule


def _suspects(
    texts: list[str], joined: str, detectors: Detectors, known: KnownValues | None
) -> tuple[Collection[str], KnownValues | None]:
    """Give the texts that may hold something, and those known values that may stand in them.

    All of them are scanned as one; clean, the common case, costs that one pass.
    """
    if not texts:
        return (), None
    # A text that holds the separator itself could hide where it ends: look at each.
    if joined.count(SEPARATOR) != len(texts) - 1:
        return set(texts), known
    if not joined.isascii():
        searched = [searchable(text) for text in texts]
        joined = SEPARATOR.join(searched)
        if joined.count(SEPARATOR) != len(texts) - 1:
            return set(texts), known
    else:
        searched = texts
    data = joined.encode()
    gated = detectors.gate_bytes(data)
    if known is not None:
        known = known.near(joined, data)
    if not gated and known is None:
        return (), None
    sizes = [len(text) + 1 for text in searched]
    if len(data) > len(joined):
        sizes = [len(text.encode()) + 1 for text in searched]
    ends = list(accumulate(sizes))
    places = detectors.suspects(data, ends) if gated else set()
    if known is not None:
        stands = known.texts_of(joined, ends)
        if stands is None:
            return set(texts), known
        places |= stands
    return {texts[n] for n in places}, known
