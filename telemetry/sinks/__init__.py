"""What reaches a recipient. Owns the `Sink` interface and the outcomes of a delivery.

A sink exists because ``recipients.toml`` names its class. It knows one recipient's wire format and
answers; it holds no key and sees no identifier but that recipient's tokens. Retrying, rate limits
and bisecting are the forwarder's business (`telemetry.forward`).
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from scrubbers.model import Remark, Scrubbed
from telemetry.errors import ConfigError

__all__ = [
    "Delivered",
    "Delivery",
    "Erasure",
    "NotErasable",
    "Outcome",
    "Refused",
    "Retry",
    "Shaping",
    "Sink",
    "Tags",
    "shaping_only",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What every delivered event carries, so that the promise is visible at the recipient.

    Attributes:
        retain_until: Last day on which the recipient may hold it: the exact moment, rounded down.
        retention_class: A name from ``retention.toml``.
        policy: First 12 hex digits of the digest of the policy that let it out.
        notice: Version of the privacy notice.
    """

    retain_until: date
    retention_class: str
    policy: str
    notice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """Everything besides the event's own content that a recipient's shape may hold.

    Attributes:
        kind: Name of the record that describes the event.
        delivery_id: This recipient's id of the event, 32 hex digits; the same on each attempt.
        occurred_at: When it happened, UTC, already coarsened as the policy says.
        tokens: This recipient's tokens by identifier: ``account``, ``organization``, ``session``…;
            a declared object's stands under ``object:`` and the name of its property.
        remarks: What was changed, edge and pseudonymizer together.
        tags: Retention and policy.
    """

    kind: str
    delivery_id: str
    occurred_at: datetime
    tokens: Mapping[str, str]
    remarks: Sequence[Remark]
    tags: Tags


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one recipient.

    Attributes:
        delivery_id: What makes a repeat harmless there.
        kind: Name of the record that the event came from.
        body: What `Sink.shape` made.
        occurred_at: When it happened, UTC.
    """

    delivery_id: str
    kind: str
    body: bytes = field(repr=False)
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Delivered:
    """The recipient said that it has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Not now.

    Attributes:
        after_s: Seconds the recipient asked for; 0 if it named none (the forwarder backs off).
        scope: Whom the wait concerns: ``""`` the whole recipient, else a name that the sink's
            `Sink.scope` gives for deliveries, for example ``error`` (a Sentry category).
        split: The request was too large or one of its events is bad: send fewer at a time.
        blocked: Credentials are refused (401, 403): keep everything, alarm, probe rarely.
    """

    after_s: float = 0.0
    scope: str = ""
    split: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Never. The event becomes a dead letter with this reason (a word of a closed set)."""

    reason: str


Outcome = Delivered | Retry | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """A recipient's receipt for a deletion request.

    Attributes:
        reference: The recipient's own number for it.
        complete: Whether it says that the data is gone (else ask again with `reference`).
    """

    reference: str
    complete: bool


class NotErasable(Exception):  # noqa: N818 - a statement about the recipient, not a fault
    """The recipient cannot delete one person's data; the policy must name what is done instead."""


class Sink(ABC):
    """One recipient's wire format and answers.

    Guarantee: at least once. What makes a repeat harmless stands in each subclass's docstring.
    """

    max_deliveries: int = 100
    """Most deliveries that one `send` takes."""

    stand_in: str = ""
    """``module:Class`` of the local server that takes the recipient's place in development."""

    remarks_at: Sequence[tuple[str | int, ...]] = ()
    """Where in what `shape` makes the recipient is told of changes, not of the event."""

    @abstractmethod
    def shape(self, event: Scrubbed, shaping: Shaping) -> bytes:
        """Make the recipient's own form of one event. Called by the pseudonymizer.

        Pure, and the same for every configuration: an explanation calls it without any.

        Raises:
            EventError: The event lacks what this recipient requires (for example an identity).
        """

    def places(self, kind: str, path: tuple[str | int, ...]) -> Sequence[tuple[str | int, ...]]:
        """Say where `shape` puts a field of the event, or the token that takes its place.

        Args:
            kind: Name of the record.
            path: Names and indexes in that record.

        Returns:
            Paths in what `shape` makes; several if it takes the value apart, none if this
            recipient never gets it.
        """
        return (path,)

    def scope(self, delivery: Delivery) -> str:
        """Name the rate-limit scope a delivery falls under; ``""`` if there is only one."""
        return ""

    def identity(self, delivery: Delivery) -> str:
        """Name whom the recipient's per-identity limits count; ``""`` if it has none."""
        return ""

    @abstractmethod
    async def send(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """Deliver in one request and give one outcome for each delivery, in order.

        Never raises for what a recipient answers; a broken connection is a `Retry`.
        """

    @abstractmethod
    async def erase(self, tokens: Collection[str]) -> Erasure:
        """Ask the recipient to delete what it holds under these tokens.

        Raises:
            NotErasable: It cannot; the policy names the compensating control.
            SinkError: It could not be reached or answered otherwise than documented.
        """

    async def close(self) -> None:  # noqa: B027 - a sink without connections has nothing to do
        """Let go of connections."""


def shaping_only(named: str) -> Sink:
    """Make a sink that has no configuration: its ``shape`` needs none, and it cannot send.

    Args:
        named: ``module:Class``, as ``recipients.toml`` names it.

    Raises:
        ConfigError: There is no such class.
    """
    module, _, class_name = named.partition(":")
    try:
        sink_class: type[Sink] = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError):
        raise ConfigError(
            f"recipients.toml names the sink {named!r}, which does not exist.",
            remedy="Name an importable class as module:Class.",
        ) from None
    return sink_class.__new__(sink_class)
