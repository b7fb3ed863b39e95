"""Sending dead letters on their way again.

Each goes with its own event id and time, through today's edge and scrubber, after a look at its
retention. The pseudonymizer then looks at the state of whom it names, as for every event; so a
letter never brings an erased account back. What a recipient refused has no identifiers beside it
any more, so nobody could look, and it does not go again.

Opens nothing: the key to the originals is where the caller is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from scrubbers.engine import scrub
from telemetry.brokers import DEAD, SEALED, Drawer, Entry
from telemetry.dead_letter import note_of
from telemetry.edge import Edge, Item
from telemetry.errors import EventError
from telemetry.intake import Intake, SealsIdentifiers, SealsOriginals, Taken
from telemetry.letters import Opened, find, hindrance
from telemetry.parcel import Parcel
from telemetry.policy import Policy
from telemetry.retention import retain_until
from telemetry.rules import Schemas

__all__ = ["Redrive"]


class Redrive:
    """Sends letters on their way again, under the live policy.

    Args:
        shelf: The log.
        policy: The live one. schemas: Compiled under it.
        sealer: Seals identifiers for the pseudonymizer. dead_sealer: Seals originals.
        on_storage: Runs a function of the log on the one thread that may use it.
        on_scrub: Runs a function on the thread for work of the processor.
        now: Aware UTC clock.
    """

    def __init__(
        self,
        shelf: Drawer,
        policy: Policy,
        schemas: Schemas,
        sealer: SealsIdentifiers,
        dead_sealer: SealsOriginals,
        *,
        on_storage: Callable[..., Awaitable[Any]],
        on_scrub: Callable[..., Awaitable[Any]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.shelf = shelf
        self._policy, self._schemas = policy, schemas
        self._sealer, self._dead_sealer = sealer, dead_sealer
        self._on_storage, self._on_scrub, self._now = on_storage, on_scrub, now
        self._edge = Edge(schemas)

    async def replay(self, opened: Sequence[Opened]) -> dict[str, int]:
        """Send letters again; those that cannot go stay where they are.

        What goes again is appended to the sealed log, counted and taken out of the dead stream in
        one transaction for each letter: killed at any moment, none is lost and none goes twice.

        Returns:
            How many went (``replayed``), and of the others how many stayed for which reason.

        Raises:
            BrokerError: The log cannot be written. What went before is counted in the books.
        """
        outcomes: Counter[str] = Counter()
        for one in opened:
            outcomes[await self._replay_one(one)] += 1
        return dict(outcomes)

    async def _replay_one(self, one: Opened) -> str:
        kept = await self._on_storage(find, self.shelf, DEAD, one)
        if kept is None:
            return "not_there"
        taken = await self._on_scrub(self._take_again, kept.parcel, one.original)
        if isinstance(taken, str):
            return taken
        counts = taken.counts + Counter({Entry(DEAD, "replayed"): 1})
        outputs = {SEALED: taken.parcels} if taken.parcels else {}
        await self._on_storage(self.shelf.take_out, DEAD, [kept], counts, outputs)
        return "replayed"

    def _take_again(self, letter: Parcel, original: bytes) -> Taken | str:
        """Make of a letter what the edge would make of its event today; else say why not."""
        if why_not := hindrance(letter, self._now()):
            return why_not
        if note_of(letter).stage == "pseudonymizer":
            return self._scrub_again(letter, original)
        # The time of receipt stands in where the event has no time of its own: it must be that one.
        intake = Intake(
            self._policy,
            self._edge,
            self._sealer,
            self._dead_sealer,
            now=lambda: letter.received_at,
        )
        if letter.kind not in self._policy.purpose_of_kind:
            return "kind_off"
        item = Item(letter.kind, original, letter.event_id)
        taken = intake.take([item], tenant=letter.tenant)
        if taken.dead:
            return taken.dead[0].reason
        return taken

    def _scrub_again(self, letter: Parcel, original: bytes) -> Taken | str:
        """Scrub what the edge had scrubbed already; its identifiers stay sealed as they are."""
        policy = self._policy
        if policy.purpose_of_kind.get(letter.kind) != letter.purpose:
            return "kind_off"
        purpose = policy.purposes[letter.purpose]
        try:
            outcome = scrub(original, self._schemas.rules_for(letter.kind, original))
        except EventError as error:
            return error.reason
        today = retain_until(letter.occurred_at, policy.retention[purpose.retention])
        until = min(letter.retain_until, today)
        if self._now() >= until:
            return "expired"
        parcel = replace(
            letter,
            body=outcome.event,
            remarks=msgspec.json.encode(outcome.remarks) if outcome.remarks else b"",
            reason="",
            policy_digest=policy.digest,
            retention_class=purpose.retention,
            legal_basis=purpose.basis,
            retain_until=until,
        )
        counts = Counter({Entry("edge", "items_in"): 1, Entry("edge", "sealed"): 1})
        return Taken(parcels=[parcel], counts=counts)
