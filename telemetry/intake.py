"""The gateway's half of the edge: scrubbed event → sealed, tagged parcel.

Decides by purpose and time whether an event may go on at all, seals its identifiers to the
pseudonymizer's *public* key, and tags it. Holds no secret. After this, no raw identifier exists
outside a capsule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypedDict

import msgspec
import structlog

from scrubbers.engine import Outcome
from scrubbers.model import Remark
from scrubbers.time import coarsen_time
from telemetry.brokers import Entry
from telemetry.dead_letter import noted
from telemetry.edge import Connection, Edge, Item, uuid7_hex
from telemetry.errors import EventError, IdentifierError
from telemetry.identity import Identifier, canonicalize, epoch_ms
from telemetry.parcel import Parcel
from telemetry.policy import Policy
from telemetry.retention import retain_until

__all__ = ["Intake", "SealsIdentifiers", "SealsOriginals", "Taken"]

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.intake")
_FUTURE_SKEW: Final = timedelta(minutes=5)
_NOBODY: Final = Connection()
_SEALED, _IN = Entry("edge", "sealed"), Entry("edge", "items_in")


class SealsIdentifiers(Protocol):
    """What the edge asks of a sealer: `telemetry.identity.Sealer`, or an explanation's own."""

    def seal(
        self,
        identifiers: Sequence[Identifier],
        *,
        event_id: str,
        schema: str,
        occurred_ms: int,
        tenant: str,
    ) -> bytes:
        """Give the capsule of one event's identifiers."""


class SealsOriginals(Protocol):
    """As above, for the originals of dead letters."""

    def seal(self, original: bytes, *, event_id: str) -> bytes:
        """Give the original of one event, sealed."""


@dataclass(slots=True)
class Taken:
    """What the edge made of the items of one request. Stored before the request is answered.

    Attributes:
        parcels: For the sealed log.
        dead: Dead letters: their bodies are sealed originals.
        counts: For the books: ``items_in = dropped + dead + sealed``.
    """

    parcels: list[Parcel] = field(default_factory=list)
    dead: list[Parcel] = field(default_factory=list)
    counts: Counter[Entry] = field(default_factory=Counter)


_DROPPED_REASONS: Final = frozenset(("undeclared_event", "unknown_kind"))


class _Header(TypedDict):
    """What the parcels of one batch have in common (`telemetry.parcel.HEADER`)."""

    kind: str
    purpose: str
    tenant: str
    retention_class: str
    legal_basis: str
    notice_version: str
    policy_digest: str


class Intake:
    """Takes items; gives parcels. One instance a process; threads may share it.

    Args:
        policy: What may leave and for how long.
        edge: Scrubs, under that policy.
        sealer: Seals identifiers for the pseudonymizer.
        dead_sealer: Seals unreadable originals for whoever may look at dead letters.
        now: Aware UTC clock.
    """

    def __init__(
        self,
        policy: Policy,
        edge: Edge,
        sealer: SealsIdentifiers,
        dead_sealer: SealsOriginals,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._policy, self._edge, self._now = policy, edge, now
        self._sealer, self._dead_sealer = sealer, dead_sealer
        self.invalid_identifiers: Counter[str] = Counter()

    def take(
        self, items: Iterable[Item], *, tenant: str, connection: Connection = _NOBODY
    ) -> Taken:
        """Take the items of one request: each becomes a parcel, a dead letter or a counted drop."""
        taken = Taken()
        counts = taken.counts
        for item in items:
            counts[_IN] += 1
            if item.refused:
                counts[Entry("edge", "dropped", item.refused)] += 1
                continue
            try:
                parcel = self._take(item, tenant, connection)
            except EventError as error:
                if error.reason in _DROPPED_REASONS:
                    counts[Entry("edge", "dropped", error.reason)] += 1
                else:
                    taken.dead.append(self._bury(item, tenant, error))
                    counts[Entry("edge", "dead", error.reason)] += 1
                continue
            if isinstance(parcel, str):
                counts[Entry("edge", "dropped", parcel)] += 1
            else:
                taken.parcels.append(parcel)
                counts[_SEALED] += 1
        return taken

    def _take(self, item: Item, tenant: str, connection: Connection) -> Parcel | str:
        name = self._policy.purpose_of_kind.get(item.kind)
        if name is None:
            return "kind_off"
        purpose = self._policy.purposes[name]
        if purpose.consent:
            return "no_consent"
        outcome = self._edge.scrub(item, connection)
        received_at = self._now()
        occurred_at = outcome.event_time
        if occurred_at is None or occurred_at > received_at + _FUTURE_SKEW:
            # The time of receipt goes out as the event's: it must be as coarse.
            grain_s = self._policy.time_grain_s(item.kind)
            occurred_at = coarsen_time(received_at, seconds=grain_s)
        until = retain_until(occurred_at, self._policy.retention[purpose.retention])
        if until <= received_at:
            return "expired"
        event_id = outcome.event_id or uuid7_hex()
        identifiers, remarks = self._identifiers(outcome)
        capsule = b""
        if identifiers:
            capsule = self._sealer.seal(
                identifiers,
                event_id=event_id,
                schema=item.kind,
                occurred_ms=epoch_ms(occurred_at),
                tenant=tenant,
            )
        return Parcel(
            **self._header(item.kind, tenant),
            event_id=event_id,
            occurred_at=occurred_at,
            received_at=received_at,
            retain_until=until,
            capsule=capsule,
            body=outcome.event,
            remarks=msgspec.json.encode(remarks) if remarks else b"",
        )

    def _identifiers(self, outcome: Outcome) -> tuple[list[Identifier], list[Remark]]:
        """Bring each identifier into its canonical form; one that does not fit is rejected."""
        found: dict[str, Identifier] = {}
        remarks = outcome.remarks
        for kind, value in outcome.identifiers:
            sort, _, name = kind.partition(":")
            pseudonym = self._policy.pseudonyms.get(sort)
            if pseudonym is None or kind in found:
                continue
            namespace = f"{pseudonym.namespace}:{name}" if name else pseudonym.namespace
            try:
                canonical = canonicalize(pseudonym.profile, value)
            except IdentifierError:
                if not self.invalid_identifiers[sort]:
                    _log.warning(
                        "identifier_rejected",
                        sort=sort,
                        profile=pseudonym.profile,
                        remedy="pseudonyms.toml: an id that does not fit is dropped.",
                    )
                self.invalid_identifiers[sort] += 1
                remarks = [*remarks, Remark((sort,), "identifier", "invalid")]
                continue
            found[kind] = Identifier(sort, namespace, canonical)
        return list(found.values()), remarks

    def _bury(self, item: Item, tenant: str, error: EventError) -> Parcel:
        """Make a dead letter: the original only sealed, the reason from a closed set."""
        at = self._now()
        header = self._header(item.kind, tenant)
        event_id = item.event_id or uuid7_hex()
        return Parcel(
            **header,
            event_id=event_id,
            occurred_at=at,
            received_at=at,
            retain_until=retain_until(at, self._policy.retention[header["retention_class"]]),
            body=self._dead_sealer.seal(item.raw, event_id=event_id),
            remarks=noted("edge", at, path=error.path, kind=item.kind, original=item.raw),
            reason=error.reason,
        )

    def _header(self, kind: str, tenant: str) -> _Header:
        """Say what the policy says of every parcel of a kind."""
        name = self._policy.purpose_of_kind[kind]
        purpose = self._policy.purposes[name]
        return {
            "kind": kind,
            "purpose": name,
            "tenant": tenant,
            "retention_class": purpose.retention,
            "legal_basis": purpose.basis,
            "notice_version": self._policy.notice.version,
            "policy_digest": self._policy.digest,
        }
