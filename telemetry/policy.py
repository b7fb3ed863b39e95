"""Load, check and hold the policy: ``schemas/policy/*.toml``.

Owns what the words of a policy mean and refuses, at start, what cannot be enforced: with file, line
and what to do. Knows no event and no key. Which fields exist stands in the schemas
(`telemetry.schema`); how a value is treated, in ``scrubbers``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import (
    Annotated,
    Any,
    BinaryIO,
    Final,
    Literal,
    TypeVar,
    get_args,
    get_origin,
)

import msgspec

from scrubbers.address import AddressProfile
from scrubbers.detectors import Detectors
from scrubbers.model import RuleError
from scrubbers.shipped import extended
from telemetry.errors import ConfigError, PolicyError
from telemetry.retention import LEAST_AGE, Period

__all__ = [
    "Policy",
    "PolicyRegister",
    "Property",
    "Pseudonym",
    "Purpose",
    "Recipient",
    "load_policy",
    "policy_dir",
    "read_toml",
    "schemas_dir",
]

_Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]
_T = TypeVar("_T")
_SHORTEST_DIGEST: Final = 8


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a policy file. A key that is not declared here is refused."""


class Safeguard(_Table, frozen=True):
    """Transfer tool of Chapter V GDPR and the day on which somebody last checked it."""

    tool: str
    checked: str


class Purpose(_Table, frozen=True):
    """Why telemetry is processed.

    Attributes:
        name: By language.
        basis: Article of the GDPR.
        kinds: Records processed for it; a kind has one purpose.
        retention: A class of ``retention.toml``.
        source: The sentence of the notice it comes from.
        interest: The legitimate interest, by language (Art. 13(1)(d)).
        consent: Nothing of it leaves without a consent.
    """

    name: dict[str, str]
    basis: str
    kinds: list[str]
    retention: str
    source: str
    interest: dict[str, str] = {}
    consent: bool = False


class RateLimit(_Table, frozen=True):
    """A documented limit: `events` in `period_s` seconds, for `each` identity or for all."""

    events: Annotated[int, msgspec.Meta(ge=1)]
    period_s: Annotated[float, msgspec.Meta(gt=0)]
    each: bool = False
    kinds: list[str] = []


class Recipient(_Table, frozen=True):
    """Who receives telemetry. A sink exists because a recipient names it.

    Attributes:
        sink: ``module:Class``; empty only with `refused`.
        refused: Why nothing is sent there yet.
        label: Stands in its tokens.
        domain: ``purpose@recipient``: what its keys and tokens are bound to.
        epoch: Life of its tokens: ``rel`` or ``quarter``.
        event_ids: Whether it sees the event's own id or a derived one.
        retention: How long it really keeps.
        kept: The same for kinds that it keeps otherwise; ``unknown`` if it does not say.
        erasure: ``api``, or ``compensated`` with the control that takes its place.
        hosts: The only hosts that may be contacted for it. A network (``10.20.0.0/16``) among them
            lets them be there; else they must be on the public Internet.
        rates: Its documented limits.
    """

    entity: str
    address: str
    place: str
    safeguard: Safeguard
    purposes: list[str]
    label: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{2,12}$")]
    domain: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]+@[a-z0-9-]+$")]
    epoch: Literal["rel", "quarter"]
    event_ids: Literal["original", "derived"]
    retention: str
    erasure: Literal["api", "compensated"]
    source: str
    hosts: list[str]
    sink: str = ""
    refused: str = ""
    compensation: str = ""
    kept: dict[str, str] = {}
    rates: list[RateLimit] = []


class _RetentionClass(_Table, frozen=True):
    period: str
    source: str


class _Retention(_Table, frozen=True):
    ceiling: str
    class_: dict[str, _RetentionClass] = msgspec.field(name="class")
    log: dict[Literal["sealed", "clean", "dead", "held"], str] = {}
    dead_letters: _RetentionClass | None = None


class Pseudonym(_Table, frozen=True):
    """One sort of identifier: where its ids come from and what a valid one looks like."""

    namespace: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9:._-]{0,60}$")]
    profile: Literal["integer", "uuid", "opaque", "nocase", "email"]


class AuditRule(_Table, frozen=True):
    """How long audit entries stay: whole calendar years after their own."""

    keep_years: Annotated[int, msgspec.Meta(ge=1, le=10)]
    source: str


class TokenRule(_Table, frozen=True):
    """From an account to its tokens. A limit on ids, for each person within 24 hours."""

    per_person_and_day: Annotated[int, msgspec.Meta(ge=0, le=1000)]


class JoinRule(_Table, frozen=True):
    """Whether tokens of two recipients are of one account."""

    enabled: bool
    per_person_and_day: Annotated[int, msgspec.Meta(ge=0, le=10)]


class ReidentifyRule(_Table, frozen=True):
    """From a token to an account, by two persons."""

    enabled: bool
    per_person_and_day: Annotated[int, msgspec.Meta(ge=0, le=10)]
    valid_hours: Annotated[int, msgspec.Meta(ge=1, le=168)]


class Reason(_Table, frozen=True):
    """Why somebody may go back, by which ways, and the rule that allows it."""

    text: dict[str, str]
    ways: Annotated[list[Literal["join", "reidentify"]], msgspec.Meta(min_length=1)]
    source: str


class Person(_Table, frozen=True):
    """Somebody who may take part: the name at the operating system, and which parts."""

    user: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$")]
    may: Annotated[list[Literal["join", "request", "approve"]], msgspec.Meta(min_length=1)]


class WaysBackRules(_Table, frozen=True):
    """``ways_back.toml``."""

    audit: AuditRule
    token: TokenRule
    join: JoinRule
    reidentify: ReidentifyRule
    reason: dict[_Name, Reason] = {}
    person: dict[_Name, Person] = {}


class _Trace(_Table, frozen=True):
    """What becomes of trace ids: ``keep`` or ``drop``."""

    mode: Literal["keep", "drop"] = "keep"


class _Secret(_Table, frozen=True):
    """What holds of the secret of every subject, whatever its kind."""

    max_age: str = "P36M"


class _Pseudonyms(_Table, frozen=True):
    account: Pseudonym | None = None
    organization: Pseudonym | None = None
    membership: Pseudonym | None = None
    session: Pseudonym | None = None
    device: Pseudonym | None = None
    object: Pseudonym | None = None
    trace: _Trace = _Trace()
    secret: _Secret = _Secret()


TRACED = frozenset({"transaction", "span", "log", "trace_metric"})
"""Kinds that are nothing without their trace."""


class _TruncateIp(_Table, frozen=True):
    profile: str


# A name as programs write it: anything else could be data that was used as a key.
_Key = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_$][A-Za-z0-9_$.]{0,63}$")]


class _Treatments(_Table, frozen=True):
    truncate_ip: _TruncateIp
    coarsen_time: dict[str, Annotated[float, msgspec.Meta(ge=0.001, le=86400)]]
    shape: dict[str, list[_Key]] = {}


class _AddressProfile(_Table, frozen=True):
    source: str
    v4_bits: Annotated[int, msgspec.Meta(ge=0, le=24)] = 0
    v6_bits: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    drop: bool = False


class _Addresses(_Table, frozen=True):
    profile: dict[_Name, _AddressProfile]


class Property(_Table, frozen=True):
    """What one property of an analytics event or user may hold."""

    type: Literal["enum", "integer", "number", "boolean", "object", "text"]
    values: list[str] = []
    minimum: int = 0
    maximum: int = 2**31 - 1
    reason: str = ""


class _UserProperties(_Table, frozen=True):
    properties: dict[str, Property]


class _Controller(_Table, frozen=True):
    name: str
    address: str
    product: str


class _Notice(_Table, frozen=True):
    version: str
    title: str


class _ControllerFile(_Table, frozen=True):
    controller: _Controller
    dpo: dict[str, str]
    authority: dict[str, str]
    notice: _Notice


_CEILING = Period(months=12)
"""Nothing may be kept longer, whatever a policy says: the promise this project exists for."""


def read_toml(path: Path, shape: type[_T], error_class: type[ConfigError]) -> _T:
    """Read a TOML file into a type.

    Raises:
        ConfigError: Of `error_class`, with file, line and what to do.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise error_class(
            "is missing or unreadable.", path=path, remedy="Restore it, or name another one."
        ) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise error_class(
            f"is no TOML: {error}.",
            path=path,
            line=int(line[1]) if line else None,
            remedy="Correct the syntax.",
        ) from None
    try:
        return msgspec.convert(data, shape, strict=True)
    except msgspec.ValidationError as error:
        # The one message of the library that quotes a value: a key pasted into the wrong line.
        what = re.sub(
            r"enum value .*", "value", str(error).partition(" - at `$")[0], flags=re.DOTALL
        )
        keys = [key for key in _guilty(data, shape) if key]
        where = f" at {'.'.join(keys)}" if keys else ""
        raise error_class(
            f"{what}{where}.",
            path=path,
            line=_key_line(text, keys),
            remedy="Correct it; docs/policy.md and deploy/config.reference.toml list the keys.",
        ) from None


def _guilty(data: Any, shape: Any) -> list[str]:
    """Find the key that does not fit; the library names it only down to the first open map."""
    if get_origin(shape) is dict and isinstance(data, dict):
        for name, value in data.items():
            if keys := _guilty(value, get_args(shape)[1]):
                return [name, *keys]
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct) and isinstance(data, dict):
        for entry in msgspec.structs.fields(shape):
            name = entry.encode_name
            if name in data and (keys := _guilty(data[name], entry.type)):
                return [name, *keys]
    try:
        msgspec.convert(data, shape, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        known = [part for part in re.sub(r"\[[^]]*\]", "", where.rstrip("`")).split(".") if part]
        return [*known, *re.findall(r"unknown field `([^`]+)`", what)] or [""]
    return []


def _key_line(text: str, keys: Sequence[str]) -> int:
    """Line of a key: below the header of the longest table that is written out."""
    lines = text.split("\n")
    for depth in range(len(keys), -1, -1):
        table, rest = re.escape(".".join(keys[:depth])), keys[depth:]
        header = re.compile(rf'^\s*\[\s*"?{table}"?\s*\]')
        start = next((n for n, line in enumerate(lines) if table and header.match(line)), None)
        if start is None and depth:
            continue
        start = start or 0
        entry = re.compile(rf'^\s*"?{re.escape(rest[0])}"?\s*=') if rest else header
        return next((n + 1 for n in range(start, len(lines)) if entry.match(lines[n])), start + 1)
    return 1


class Policy:
    """A policy that was checked. Immutable; make one with `load_policy`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        head = self._read("controller.toml", _ControllerFile)
        self.controller, self.notice = head.controller, head.notice
        self.dpo, self.authority = head.dpo, head.authority
        self.purposes = self._read("purposes.toml", dict[_Name, Purpose])
        self.recipients = self._read("recipients.toml", dict[_Name, Recipient])
        retention = self._read("retention.toml", _Retention)
        pseudonyms = self._read("pseudonyms.toml", _Pseudonyms)
        self.trace = pseudonyms.trace.mode
        self.max_age = self._any_period(
            "pseudonyms.toml", "secret.max_age", pseudonyms.secret.max_age
        )
        if self.max_age.days or self.max_age.months < LEAST_AGE.months:
            self._refuse(
                "pseudonyms.toml",
                "secret.max_age",
                "is no number of whole months, or below 14: nobody could be erased everywhere.",
                "Choose at least P14M; a year of it is what recipients may hold.",
            )
        self.pseudonyms: Mapping[str, Pseudonym] = {
            name: entry
            for name in pseudonyms.__struct_fields__
            if isinstance(entry := getattr(pseudonyms, name), Pseudonym)
        }
        self.ways_back = self._read("ways_back.toml", WaysBackRules)
        self.treatments = self._read("treatments.toml", _Treatments)
        addresses = self._read("addresses.toml", _Addresses).profile
        self.events = self._read("events.toml", dict[str, dict[_Name, Property]])
        self.user_properties = self._read("user_properties.toml", _UserProperties).properties
        try:
            self.detector_table = extended(self._read("detectors.toml", dict[str, Any]))
        except RuleError as error:
            raise PolicyError(str(error)) from None

        self.ceiling = self._period("retention.toml", "ceiling", retention.ceiling, _CEILING)
        self.dead_letters = self.ceiling
        if (letters := retention.dead_letters) is not None:
            self.dead_letters = self._period(
                "retention.toml", "dead_letters.period", letters.period, self.ceiling
            )
        self.retention = {
            name: self._period("retention.toml", f"class.{name}.period", entry.period, self.ceiling)
            for name, entry in retention.class_.items()
        }
        self.log_retention: Mapping[str, Period] = {
            sort: self._period("retention.toml", f"log.{sort}", text, self.ceiling)
            for sort, text in retention.log.items()
        }
        if "default" not in self.treatments.coarsen_time:
            self._refuse(
                "treatments.toml",
                "coarsen_time",
                "has no `default`.",
                "Say to how many seconds times of kinds are rounded that it does not name.",
            )
        self._check_purposes()
        self._check_recipients()
        self._check_apart()
        self._check_properties()
        self._check_ways_back()
        self._check_trace()
        profile = self.treatments.truncate_ip.profile
        if profile not in addresses:
            self._refuse(
                "treatments.toml",
                "truncate_ip.profile",
                f"names the address profile {profile!r}, which addresses.toml does not have.",
                f"Use one of: {', '.join(sorted(addresses))}.",
            )
        chosen = addresses[profile]
        self.address_source = chosen.source
        self.address_profile = AddressProfile(
            name=profile, v4_bits=chosen.v4_bits, v6_bits=chosen.v6_bits, drop=chosen.drop
        )

    def _read(self, file: str, shape: type[_T]) -> _T:
        return read_toml(self.folder / file, shape, PolicyError)

    def _refuse(self, file: str, key: str, message: str, remedy: str) -> None:
        path = self.folder / file
        line = _key_line(path.read_text("utf-8"), key.split("."))
        raise PolicyError(f"{key} {message}", path=path, line=line, remedy=remedy)

    def _any_period(self, file: str, key: str, text: str) -> Period:
        try:
            return Period.parse(text)
        except ValueError as error:
            self._refuse(file, key, f"is no period: {error}.", "Write for example P12M.")
            raise AssertionError from None

    def _period(self, file: str, key: str, text: str, longest: Period) -> Period:
        period = self._any_period(file, key, text)
        if period.may_exceed(longest):
            self._refuse(
                file,
                key,
                f"is {text}, longer than the promised ceiling.",
                "Shorten it to P12M or less: no policy can promise more than the notice does.",
            )
        return period

    def _check_purposes(self) -> None:
        owner: dict[str, str] = {}
        for name, purpose in self.purposes.items():
            if purpose.retention not in self.retention:
                self._refuse(
                    "purposes.toml",
                    f"{name}.retention",
                    "names a class that retention.toml does not have.",
                    f"Use one of: {', '.join(sorted(self.retention))}.",
                )
            for kind in purpose.kinds:
                if kind in owner:
                    self._refuse(
                        "purposes.toml",
                        f"{name}.kinds",
                        f"claims {kind!r}, which belongs to {owner[kind]!r} already.",
                        "An event is processed for one purpose (Art. 5(1)(b) GDPR): remove one.",
                    )
                owner[kind] = name
        self.purpose_of_kind: Mapping[str, str] = owner

    def _check_recipients(self) -> None:
        for name, recipient in self.recipients.items():
            for purpose in recipient.purposes:
                if purpose not in self.purposes:
                    self._refuse(
                        "recipients.toml",
                        f"{name}.purposes",
                        f"names the purpose {purpose!r}, which purposes.toml does not have.",
                        f"Use one of: {', '.join(sorted(self.purposes))}.",
                    )
                promised = self.retention[self.purposes[purpose].retention]
                self._period("recipients.toml", f"{name}.retention", recipient.retention, promised)
            self._check_kept(name, recipient)
            if bool(recipient.sink) == bool(recipient.refused):
                self._refuse(
                    "recipients.toml",
                    f"{name}.sink",
                    "must be given, or else `refused` with a reason; not both.",
                    "Name the class as module:Class, or say why nothing is sent there.",
                )
            if recipient.erasure == "compensated" and not recipient.compensation:
                self._refuse(
                    "recipients.toml",
                    f"{name}.compensation",
                    "is missing: this recipient cannot erase one person's data.",
                    "Say what is done instead (Art. 17, 19 GDPR).",
                )

    def _check_trace(self) -> None:
        """Refuse to drop what a kind that is on cannot do without."""
        if self.trace == "drop" and (traced := sorted(TRACED & set(self.purpose_of_kind))):
            self._refuse(
                "pseudonyms.toml",
                "trace.mode",
                f"drops trace ids, without which {traced[0]!r} is nothing.",
                f"Keep them, or take {traced[0]!r} out of the kinds in purposes.toml.",
            )

    def _check_apart(self) -> None:
        """Refuse two recipients whose tokens could be joined, or told apart by nobody."""
        for key in ("domain", "label"):
            owner: dict[str, str] = {}
            for name, recipient in self.recipients.items():
                value: str = getattr(recipient, key)
                if value in owner:
                    self._refuse(
                        "recipients.toml",
                        f"{name}.{key}",
                        f"is that of {owner[value]!r} too.",
                        "Give each recipient its own, or their tokens can be joined.",
                    )
                owner[value] = name

    def _check_kept(self, name: str, recipient: Recipient) -> None:
        """Refuse a kind that is on and kept longer than its purpose promises."""
        known = {path.stem for path in schemas_dir().glob("*.avsc")} - {"batch"}
        for kind, kept in recipient.kept.items():
            key = f"{name}.kept.{kind}"
            if kind not in known:
                self._refuse(
                    "recipients.toml",
                    key,
                    "is no kind of event.",
                    f"Use one of: {', '.join(sorted(known))}.",
                )
            # What is off must be a period too: it is read by whoever thinks of switching it on.
            period = None if kept == "unknown" else self._any_period("recipients.toml", key, kept)
            purpose = self.purpose_of_kind.get(kind, "")
            if not recipient.sink or purpose not in recipient.purposes:
                continue
            remedy = f"Take {kind!r} out of the kinds of {purpose!r} in purposes.toml"
            if period is None:
                self._refuse(
                    "recipients.toml",
                    key,
                    "is unknown, so nothing can be promised about it.",
                    f"{remedy}, or ask the recipient and write how long it keeps them.",
                )
            elif period.may_exceed(self.retention[self.purposes[purpose].retention]):
                self._refuse(
                    "recipients.toml",
                    key,
                    f"is {kept}, longer than {purpose!r} promises.",
                    f"{remedy}, or agree a shorter period with the recipient and write it here.",
                )

    def _check_properties(self) -> None:
        tables = [
            (f"{event}.{name}", "events.toml", name, entry)
            for event, entries in self.events.items()
            for name, entry in entries.items()
        ]
        tables += [
            (f"properties.{name}", "user_properties.toml", name, entry)
            for name, entry in self.user_properties.items()
        ]
        for key, file, _name, entry in tables:
            if (entry.type == "enum") != bool(entry.values):
                self._refuse(
                    file,
                    key,
                    "needs `values` exactly if it is an enum.",
                    "List every value it may have.",
                )
            if entry.type == "text" and not entry.reason:
                self._refuse(
                    file,
                    key,
                    "is free text without a `reason`.",
                    "Say why a closed type does not do, or use one.",
                )

    def _check_ways_back(self) -> None:
        """Refuse a way that is on and that nobody could take, or one person alone could."""
        rules = self.ways_back
        users = [person.user for person in rules.person.values()]
        for name, person in rules.person.items():
            if users.count(person.user) > 1:
                self._refuse(
                    "ways_back.toml",
                    f"person.{name}.user",
                    "stands for two persons.",
                    "Give everybody a user of their own: it is what tells two persons apart.",
                )
        for way, parts in (("join", ["join"]), ("reidentify", ["request", "approve"])):
            if not getattr(rules, way).enabled:
                continue
            if not any(way in reason.ways for reason in rules.reason.values()):
                self._refuse(
                    "ways_back.toml",
                    f"{way}.enabled",
                    "is on, but no reason names this way.",
                    "Write a [reason.NAME] with text, ways and source.",
                )
            able = [{n for n, p in rules.person.items() if part in p.may} for part in parts]
            if not all(able) or len(set().union(*able)) < len(parts):
                self._refuse(
                    "ways_back.toml",
                    f"{way}.enabled",
                    f"is on, but no {' and no other '.join(parts)} person is named.",
                    "Write a [person.NAME] for each, with user and may.",
                )

    @cached_property
    def detectors(self) -> Detectors:
        """The detector table, checked and compiled.

        Raises:
            PolicyError: A row cannot be used; with its line.
        """
        path = self.folder / "detectors.toml"
        try:
            return Detectors.compile(self.detector_table)
        except RuleError as error:
            named = re.search(r"detector (\w+)", str(error))
            keys = ["detector", named[1]] if named else []
            line = _key_line(path.read_text("utf-8"), keys) if keys else None
            raise PolicyError(str(error), path=path, line=line) from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides what leaves: policy files and schemas, in hex."""
        total = hashlib.sha256()
        files = [*self.folder.glob("*.toml"), *schemas_dir().glob("*.avsc")]
        for path in sorted(files, key=lambda path: path.name):
            text = path.read_text("utf-8")
            data: Any = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
            canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            total.update(f"{path.name}\0{canonical}\0".encode())
        return total.hexdigest()

    def recipients_of(self, purpose: str) -> Sequence[str]:
        """Names of the recipients that really receive what is processed for `purpose`."""
        return [
            name
            for name, recipient in self.recipients.items()
            if recipient.sink and purpose in recipient.purposes
        ]

    def time_grain_s(self, kind: str) -> float:
        """Seconds to which times of events of this kind are rounded down."""
        grains = self.treatments.coarsen_time
        return grains.get(kind, grains["default"])


class PolicyRegister:
    """Append-only list of the policies that were ever live here.

    A hop takes parcels of a policy that is *live* or *superseded*; one that was *revoked*, or was
    never seen, does not leave. The file holds one JSON object a line: digest, state, time, and who
    ordered it. A line that another process appends is obeyed within `LOOK_S`.

    Args:
        path: The file; need not exist.
        monotonic: Seconds, for how often the file is looked at.

    Raises:
        PolicyError: A line cannot be read; then nobody knows what was revoked.
    """

    LOOK_S: Final = 1.0

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._monotonic = path, monotonic
        self._states: dict[str, str] = {}
        self._since: dict[str, str] = {}
        self._read_bytes = 0
        self._look_at = 0.0
        self._lock = Lock()
        self._look()

    def enter(
        self, digest: str, state: Literal["live", "revoked"], at: datetime, *, by: str = ""
    ) -> None:
        """Make `digest` the live policy, or revoke it. The former live one becomes superseded.

        Args:
            digest: SHA-256 of a policy, in hex.
            state: What it becomes.
            at: Aware time.
            by: Who ordered it; stands in the file and nowhere else.

        Raises:
            PolicyError: It was revoked here before, which nothing takes back.
        """
        self._look()
        if self._states.get(digest) == state:
            return
        if self._states.get(digest) == "revoked":
            raise PolicyError(
                "is a policy that was revoked here.",
                path=self._path,
                remedy="Change the policy; a revoked one cannot become live again.",
            )
        lines = [{"digest": digest, "state": state, "at": at.isoformat()}]
        if by:
            lines[0]["by"] = by
        if state == "live":
            lines[:0] = [
                {"digest": former, "state": "superseded", "at": at.isoformat()}
                for former, was in self._states.items()
                if was == "live"
            ]
        text = "".join(json.dumps(entry) + "\n" for entry in lines)
        with self._path.open("a+b") as file:
            # Half a line of a process that was killed goes; a whole one by hand gets its end.
            os.ftruncate(file.fileno(), self._read_bytes)
            ended = not self._read_bytes or self._last_byte(file) == b"\n"
            file.write(("" if ended else "\n").encode() + text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._look()

    def revoke(self, digest: str, at: datetime, *, by: str = "") -> str:
        """Revoke a policy that was live here: nothing that it scrubbed leaves any more.

        Args:
            digest: Its digest, or at least eight first digits that no other one has.
            at: Aware time.
            by: Who ordered it.

        Returns:
            The whole digest.

        Raises:
            PolicyError: No policy, or several, were live here whose digest begins like this.
        """
        self._look()
        found = [known for known in self._states if known.startswith(digest)]
        if len(digest) < _SHORTEST_DIGEST or len(found) != 1:
            raise PolicyError(
                "names no policy, or several, that begin like this.",
                path=self._path,
                remedy="Give at least eight digits of a digest that `telemetry policy list` shows.",
            )
        self.enter(found[0], "revoked", at, by=by)
        return found[0]

    def accepts(self, digest: str) -> bool:
        """Tell whether parcels that were scrubbed under `digest` may go on."""
        now = self._monotonic()
        if now >= self._look_at:
            self._look_at = now + self.LOOK_S
            self._look()
        return self._states.get(digest) in ("live", "superseded")

    def states(self) -> list[tuple[str, str, str]]:
        """List digest, state and since when (ISO 8601) of each policy, oldest first."""
        self._look()
        return [(digest, state, self._since[digest]) for digest, state in self._states.items()]

    @staticmethod
    def _last_byte(file: BinaryIO) -> bytes:
        file.seek(-1, os.SEEK_END)
        return file.read(1)

    def _look(self) -> None:
        """Read what was appended since the last look. Half a line is not there yet."""
        with self._lock:
            self._read_on()

    def _read_on(self) -> None:
        try:
            if self._path.stat().st_size == self._read_bytes:
                return
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                fresh = file.read()
        except FileNotFoundError:
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        with suppress(ValueError):
            json.loads(fresh[len(whole) :])  # a last line that somebody wrote without its end
            whole = fresh
        try:
            entries = [json.loads(line) for line in whole.splitlines() if line.strip()]
            for entry in entries:
                self._states[entry["digest"]] = entry["state"]
                self._since[entry["digest"]] = entry["at"]
        except (ValueError, KeyError, TypeError):
            raise PolicyError(
                "has a line that cannot be read, so nobody knows what was revoked.",
                path=self._path,
                remedy="Restore it from a backup, or mend the line.",
            ) from None
        self._read_bytes += len(whole)


def schemas_dir() -> Path:
    """Folder of the schemas: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).with_name("_schemas")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "schemas"


def policy_dir(configured: str | None = None) -> Path:
    """Folder of the policy: as configured, else ``TELEMETRY_POLICY``, else the shipped one."""
    named = configured or os.environ.get("TELEMETRY_POLICY")
    return Path(named) if named else schemas_dir() / "policy"


def load_policy(folder: Path | None = None) -> Policy:
    """Load and check a policy.

    Raises:
        PolicyError: With file, line and what to do.
    """
    return Policy(folder or policy_dir())
