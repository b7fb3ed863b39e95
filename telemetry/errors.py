"""All errors of the package, in one tree. The place of a class in it answers: what now?

::

    TelemetryError
    ├── ConfigError       the installation is wrong: stop, at start, before any event
    │   ├── PolicyError       a file under schemas/policy says something we cannot enforce
    │   ├── SchemaError       an Avro record lacks an annotation or has one we do not know
    │   └── KeyringError      a key is missing, unreadable, readable by others, or not for here
    ├── EventError        this event is bad: park it, go on
    │   ├── DecodeError       its bytes are not what the schema calls for
    │   ├── ScrubError        a treatment failed or its post-condition did not hold
    │   ├── CapsuleError      its sealed identifiers do not open
    │   └── IdentifierError   an identifier does not fit the profile of its namespace
    ├── RefusedError      somebody asked for what the policy does not allow them; it is audited
    └── TransportError    the outside failed: try again later
        ├── BrokerError       the log cannot take or give
        │   └── SpoolFull         its quota or the disk is used up: refuse, go on draining
        ├── VaultError        the store of per-subject secrets cannot be asked: hold
        ├── AuditError        the audit log cannot be written or read: what it must witness waits
        ├── TooManyDead       a stage would park nearly everything: it stops
        └── SinkError         a recipient cannot be reached or does not answer as documented

No message of any of these repeats a value of an event. Third-party errors that do (``json``,
``msgspec``, ``fastavro``, ``ipaddress``) are replaced with one of these, raised ``from None``.
"""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "AuditError",
    "BrokerError",
    "CapsuleError",
    "ConfigError",
    "DecodeError",
    "EventError",
    "IdentifierError",
    "KeyringError",
    "PolicyError",
    "RefusedError",
    "SchemaError",
    "ScrubError",
    "SinkError",
    "SpoolFull",
    "TelemetryError",
    "TooManyDead",
    "TransportError",
    "VaultError",
]


class TelemetryError(Exception):
    """Whatever this package raises."""

    retriable = False


class ConfigError(TelemetryError):
    """The installation is wrong. Raised at start, before any event.

    Args:
        message: What is wrong.
        path: The file it stands in.
        line: The line, counted from 1.
        remedy: What to do about it, as one imperative sentence.
    """

    def __init__(
        self, message: str, *, path: Path | None = None, line: int | None = None, remedy: str = ""
    ) -> None:
        self.message, self.path, self.line, self.remedy = message, path, line, remedy
        place = "" if path is None else f"{path}{'' if line is None else f':{line}'}: "
        super().__init__(f"{place}{message}{f' {remedy}' if remedy else ''}")


class PolicyError(ConfigError):
    """A policy file says something that cannot be enforced."""


class SchemaError(ConfigError):
    """A record under ``schemas/`` lacks an annotation or has one we do not know."""


class KeyringError(ConfigError):
    """A key is missing, unreadable, readable by others, or not meant for this environment."""


class EventError(TelemetryError):
    """One event is bad. It is parked with `reason`; the events around it go on.

    Args:
        reason: A word of a closed set: it becomes a metric label and a dead letter's type.
        path: Where in the event, as dotted path of declared names; never a value.
    """

    reason = "event"

    def __init__(self, reason: str = "", path: str = "") -> None:
        self.reason, self.path = reason or type(self).reason, path
        super().__init__(f"{self.reason}{f' at {path}' if path else ''}")


class DecodeError(EventError):
    """The bytes are not what the schema calls for."""

    reason = "undecodable"


class ScrubError(EventError):
    """A treatment failed, or its post-condition did not hold."""

    reason = "scrub_failed"


class CapsuleError(EventError):
    """The sealed identifiers do not open, or belong to another event."""

    reason = "capsule"


class IdentifierError(EventError):
    """An identifier does not fit the profile of its namespace. It is rejected, not repaired."""

    reason = "invalid_identifier"


class RefusedError(TelemetryError):
    """The policy does not allow what was asked for, or not to this person. It was audited."""


class TransportError(TelemetryError):
    """The outside failed."""

    retriable = True


class BrokerError(TransportError):
    """The log cannot take or give. Nothing was acknowledged."""


class VaultError(TransportError):
    """The store of per-subject secrets cannot be asked. Hold; never send without it."""


class AuditError(TransportError):
    """The audit log cannot be written, read or believed. What it must witness does not happen."""


class SpoolFull(BrokerError):  # noqa: N818 - a state that passes, as in `queue.Full`
    """The log's quota or its disk is used up. Nothing was stored; what it holds can be drained."""


class TooManyDead(TransportError):  # noqa: N818 - a state that passes, as in `queue.Full`
    """A stage would make dead letters of nearly everything. It stops; nothing was parked.

    Args:
        what: Which limit was passed.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"Too many {what}. Look: telemetry dead list. Go on: telemetry resume.")


class SinkError(TransportError):
    """A recipient cannot be reached or does not answer as documented."""
