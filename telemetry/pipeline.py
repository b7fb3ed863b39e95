"""The pseudonymizer: what becomes of one parcel, and the loop around it.

An event arrives scrubbed, its identifiers sealed. `decide` scrubs it again by the policy of today,
asks who may receive it, and makes one parcel for each recipient with that recipient's tokens and
the tags. It does no I/O: `Pseudonymizer` polls, resolves identities in one batch, decides, and
finishes — outputs, counts and position in one step. It has no way out but the clean logs.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final, Protocol

import msgspec
import structlog

from scrubbers.engine import rescrub, scrub
from scrubbers.model import Remark, Scrubbed
from telemetry.brokers import DEAD, HELD, SEALED, Broker, Entry, Polled, clean
from telemetry.dead_letter import Brake, Bury, forgetting
from telemetry.errors import EventError, KeyringError, PolicyError, TransportError
from telemetry.identity import Domain, EpochRule, Identity, Sealed, SuppressionState
from telemetry.parcel import Parcel
from telemetry.policy import Policy
from telemetry.retention import retain_until, retention_date
from telemetry.rules import Schemas
from telemetry.sinks import Shaping, Sink, Tags

__all__ = ["Deliver", "Drop", "Hold", "Named", "Park", "Pseudonymizer", "Terms", "decide"]

GROUP: Final = "pseudonymizer"
_POLL_EVENTS: Final = 256
_IDLE_S: Final = 0.02
_HOLD_S: Final = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger("telemetry.pipeline")
_read_remarks = msgspec.json.Decoder(list[Remark]).decode


class Named(Protocol):
    """Whom an event names: `telemetry.identity.Resolved`, or an explanation's symbols."""

    def state(self, purpose: str) -> SuppressionState:
        """Tell whether it may be processed for a purpose."""

    def tokens(self, domain: Domain, at: datetime) -> dict[str, str]:
        """Give one recipient's tokens by kind."""

    def delivery_id(self, domain: Domain) -> str:
        """Give one recipient's id of the event."""


class Accepts(Protocol):
    """Which policies' parcels go on: `telemetry.policy.PolicyRegister`."""

    def accepts(self, digest: str) -> bool:
        """Tell whether parcels that were scrubbed under it may."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """It goes to this recipient, as this parcel of its clean log."""

    parcel: Parcel


@dataclass(frozen=True, slots=True)
class Drop:
    """It does not go to this recipient, by rule. An outcome, not an error; counted by reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Park:
    """It is bad and becomes a dead letter."""

    reason: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """Its subject is restricted or an objection is pending: it waits, still sealed."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms under which parcels leave: fixed while the process runs.

    Attributes:
        policy: The live policy. schemas: Compiled under it. register: Which other policies'
            parcels are still accepted. sinks: By recipient; only `Sink.shape` is used here.
    """

    policy: Policy
    schemas: Schemas
    register: Accepts
    sinks: Mapping[str, Sink]


Decision = Park | Hold | Drop | Mapping[str, Deliver | Drop]

_STATES: Final[Mapping[str, Drop | Hold]] = {
    "ERASED": Drop("erased"),
    "OBJECTED": Drop("objected"),
    "WITHDRAWN": Drop("no_consent"),
    "RESTRICTED": Hold("restricted"),
}
"""What a subject's state means for an event; ACTIVE and GRANTED let it go on."""


def decide(parcel: Parcel, identities: Named | EventError, terms: Terms, now: datetime) -> Decision:
    """Decide what becomes of one parcel. No I/O.

    Args:
        parcel: From the sealed log.
        identities: What its capsule opened to, or why it did not.
        terms: Policy, schemas and sinks.
        now: Aware UTC time.

    Returns:
        `Park` or `Hold` for the whole parcel, `Drop` if no recipient gets it for one reason, else
        one outcome for each recipient of its purpose.
    """
    if isinstance(identities, EventError):
        return _refusal(parcel, terms, now) or Park(identities.reason, identities.path)
    verdict = _refusal(parcel, terms, now) or _of_subject(parcel, identities, terms.policy)
    if verdict is not None:
        return verdict
    recipients = terms.policy.recipients_of(parcel.purpose)
    if not recipients:
        return Drop("no_recipient")
    try:
        rules = terms.schemas.rules_for(parcel.kind, parcel.body)
        if parcel.policy_digest == terms.policy.digest:
            outcome = rescrub(Scrubbed(parcel.body), rules)
        else:
            # Another contract wrote it: read it as anybody's, and keep what today's declares.
            parcel = _renewed(parcel, terms.policy)
            outcome = scrub(parcel.body, rules)
        remarks = _with_names_hidden([*_remarks_of(parcel), *outcome.remarks])
    except EventError as error:
        if error.reason == "undeclared_event":
            return Drop(error.reason)
        return Park(error.reason, error.path)
    return {
        name: _for_recipient(name, parcel, outcome.event, remarks, identities, terms)
        for name in recipients
    }


def _refusal(parcel: Parcel, terms: Terms, now: datetime) -> Park | Drop | None:
    """Say why a parcel goes nowhere, whomever it names."""
    policy = terms.policy
    if now >= parcel.retain_until:
        return Drop("expired")
    if not terms.register.accepts(parcel.policy_digest):
        return Park("unknown_policy")
    if policy.purpose_of_kind.get(parcel.kind) != parcel.purpose:
        return Drop("kind_off")
    return Drop("expired") if now >= _renewed(parcel, policy).retain_until else None


def _renewed(parcel: Parcel, policy: Policy) -> Parcel:
    """Bring what an older policy promised under today's: retention can only become shorter."""
    if parcel.policy_digest == policy.digest:
        return parcel
    purpose = policy.purposes[parcel.purpose]
    today = retain_until(parcel.occurred_at, policy.retention[purpose.retention])
    return replace(
        parcel,
        retain_until=min(parcel.retain_until, today),
        retention_class=purpose.retention,
        legal_basis=purpose.basis,
    )


def _of_subject(parcel: Parcel, identities: Named, policy: Policy) -> Drop | Hold | None:
    """Say what the states of whom it names mean for it."""
    state = identities.state(parcel.purpose)
    if policy.purposes[parcel.purpose].consent and state == "ACTIVE":
        return Drop("no_consent")
    return _STATES.get(state)


def _with_names_hidden(remarks: list[Remark]) -> list[Remark]:
    """Hide the names of entries in a map of which today one was too personal to show.

    An earlier remark may have shown it, when the policy of its day allowed that.
    """
    maps = {remark.path[:-1] for remark in remarks if remark.path[-1:] == ("<key>",)}
    return [
        msgspec.structs.replace(remark, path=(*remark.path[:-1], "<key>"))
        if remark.path[:-1] in maps
        else remark
        for remark in remarks
    ]


def _remarks_of(parcel: Parcel) -> list[Remark]:
    try:
        return _read_remarks(parcel.remarks) if parcel.remarks else []
    except msgspec.MsgspecError:
        raise EventError("contract", "remarks") from None


def _for_recipient(
    name: str,
    parcel: Parcel,
    event: Scrubbed,
    remarks: Sequence[Remark],
    identities: Named,
    terms: Terms,
) -> Deliver | Drop:
    recipient = terms.policy.recipients[name]
    domain = _domain(recipient.domain, recipient.label, recipient.epoch)
    original = recipient.event_ids == "original"
    delivery_id = parcel.event_id if original else identities.delivery_id(domain)
    try:
        tokens = _named(identities.tokens(domain, parcel.occurred_at), terms.policy)
    except EventError as error:
        return Drop(error.reason)
    shaping = Shaping(
        kind=parcel.kind,
        delivery_id=delivery_id,
        occurred_at=parcel.occurred_at,
        tokens=tokens,
        remarks=remarks,
        tags=Tags(
            retain_until=retention_date(parcel.retain_until),
            retention_class=parcel.retention_class,
            policy=terms.policy.digest[:12],
            notice=parcel.notice_version,
        ),
    )
    try:
        body = terms.sinks[name].shape(event, shaping)
    except EventError as error:
        return Drop(error.reason)
    return Deliver(
        replace(
            parcel,
            event_id=delivery_id,
            policy_digest=terms.policy.digest,
            capsule=b"",
            body=body,
            remarks=b"",
        )
    )


@cache
def _domain(name: str, label: str, epoch: EpochRule) -> Domain:
    """Make the domain of a recipient once; a policy has a handful."""
    return Domain(name=name, label=label, epoch=epoch)


def _named(tokens: Mapping[str, str], policy: Policy) -> dict[str, str]:
    """Name the tokens of declared objects by their property, as the sinks know them."""
    objects = policy.pseudonyms.get("object")
    prefix = f"object:{objects.namespace}:" if objects else "object:"
    return {
        f"object:{kind.removeprefix(prefix)}" if kind.startswith(prefix) else kind: token
        for kind, token in tokens.items()
    }


class Pseudonymizer:
    """The loop around `decide`. Alone in holding keys; has no way out but the clean logs.

    Args:
        broker: Where sealed parcels come from and clean ones go.
        identity: Opens capsules, makes tokens.
        terms: Policy, schemas, sinks.
        on_storage: Runs a function of the broker on the one thread that may use it.
        on_scrub: Runs a function on the thread for work of the processor.
        bury: Makes a dead letter; without a key to seal it to, its original is forgotten.
        brake: Stops this rather than have it park nearly everything.
        now: Aware UTC clock.
    """

    def __init__(
        self,
        broker: Broker,
        identity: Identity,
        terms: Terms,
        *,
        on_storage: Callable[..., Awaitable[Any]],
        on_scrub: Callable[..., Awaitable[Any]],
        bury: Bury = forgetting,
        brake: Brake | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._broker, self._identity, self._terms = broker, identity, terms
        self._on_storage, self._on_scrub, self._now = on_storage, on_scrub, now
        self._bury = bury
        self.brake = brake or Brake()
        self.holding = ""
        """Why nothing is taken at the moment; empty if all is well."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. What is not finished then is polled again at the next start."""
        while not stop.is_set():
            try:
                busy = await self.step()
                self.holding = ""
            except (TransportError, KeyringError, PolicyError) as error:
                # Vault, keys, register or log cannot be asked, or the live policy was revoked: stop
                # taking; never send unchecked.
                if self.holding != type(error).__name__:
                    # What these say is ours, and quotes no event.
                    _log.warning("holding", reason=type(error).__name__, why=str(error))
                self.holding = type(error).__name__
                busy = False
            if not busy:
                pause = _HOLD_S if self.holding else _IDLE_S
                try:
                    await asyncio.wait_for(stop.wait(), pause)
                except TimeoutError:
                    continue

    async def step(self) -> bool:
        """Take one batch through. Tells whether there was any."""
        if not self._terms.register.accepts(self._terms.policy.digest):
            raise PolicyError("The live policy was revoked.", remedy="Start with another one.")
        polled: Polled = await self._on_storage(self._broker.poll, SEALED, GROUP, _POLL_EVENTS)
        if not polled.parcels:
            return False
        outputs, counts, parked = await self._on_scrub(self._decide_all, polled.parcels)
        await self._on_storage(self._broker.finish, polled, outputs, counts)
        self.brake.note(parked)
        return True

    def _decide_all(
        self, parcels: Sequence[Parcel]
    ) -> tuple[dict[str, list[Parcel]], Counter[Entry], list[bool]]:
        resolved = self._identity.resolve(
            [
                Sealed(
                    capsule=parcel.capsule,
                    event_id=parcel.event_id,
                    schema=parcel.kind,
                    occurred_at=parcel.occurred_at,
                    tenant=parcel.tenant,
                )
                for parcel in parcels
            ],
            purposes={parcel.purpose for parcel in parcels},
        )
        now = self._now()
        outputs: dict[str, list[Parcel]] = {}
        counts: Counter[Entry] = Counter()
        decisions = [
            decide(parcel, identities, self._terms, now)
            for parcel, identities in zip(parcels, resolved, strict=True)
        ]
        parked = [isinstance(decision, Park) for decision in decisions]
        self.brake.check(parked)
        for parcel, decision in zip(parcels, decisions, strict=True):
            _enter(parcel, decision, outputs, counts, self._bury)
        return outputs, counts, parked


def _enter(
    parcel: Parcel,
    decision: Decision,
    outputs: dict[str, list[Parcel]],
    counts: Counter[Entry],
    bury: Bury,
) -> None:
    """Turn one decision into outputs and counts: ``sealed = scrubbed + dropped + dead + held``."""
    if isinstance(decision, Park):
        outputs.setdefault(DEAD, []).append(bury(parcel, decision.reason, decision.path))
        counts[Entry(GROUP, "dead", decision.reason)] += 1
        return
    if isinstance(decision, Hold):
        outputs.setdefault(HELD, []).append(replace(parcel, reason=decision.reason))
        counts[Entry(GROUP, "held", decision.reason)] += 1
        return
    if isinstance(decision, Drop):
        counts[Entry(GROUP, "dropped", decision.reason)] += 1
        return
    counts[Entry(GROUP, "scrubbed")] += 1
    for recipient, outcome in decision.items():
        counts[Entry(recipient, "routed")] += 1
        if isinstance(outcome, Drop):
            counts[Entry(recipient, "dropped", outcome.reason)] += 1
        else:
            outputs.setdefault(clean(recipient), []).append(outcome.parcel)
