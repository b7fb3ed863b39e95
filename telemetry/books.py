"""The books: what came in, what became of it, and whether the sums agree.

Items are counted at the edge and by the pseudonymizer, deliveries (one for each item and recipient)
by the forwarders. Three equations hold exactly at every moment at which nobody is writing::

    items_in = dropped at edge + dead at edge + sealed
    sealed   = scrubbed + dropped + dead + held + pending
    routed   = delivered + dropped + dead + pending          for each recipient

On the embedded log, which keeps dead and held parcels itself, two more::

    dead     = waiting + replayed + dropped + unreadable     over all stages
    held     = waiting + dropped + unreadable

Repeats (``resent``) and originals of dead letters that were ``forgotten`` for lack of room stand
outside: they are no outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from telemetry.brokers import DEAD, HELD, SEALED, Entry, clean

__all__ = ["REASONS", "Balance", "Books", "joined"]

_EDGE: Final = "edge"
_PSEUDONYMIZER: Final = "pseudonymizer"

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "dropped": {
        "client_report": "what a Sentry client threw away itself; counted as `client_discarded`",
        "empty_container": "a container of logs, spans or metrics with nothing in it",
        "erased": "somebody it names was erased",
        "expired": "its retention has ended; at `dead` and `held`: that of the letter",
        "invalid_time": "its time is out of reach of every key",
        "kind_": "with the type behind it: a kind that no purpose names, or none ever may",
        "kind_off": "no purpose of the policy names its kind any more",
        "log_retention": "on Kafka, its topic's retention was quicker than the forwarder",
        "no_consent": "its purpose needs a consent that is not there",
        "no_identity": "Heap only knows events of somebody, and this one names nobody",
        "no_recipient": "its purpose has no recipient that sends",
        "no_room": "the stream's share of the embedded log was full",
        "objected": "somebody it names has objected",
        "purged": "a dead letter that somebody deleted: `telemetry dead purge`",
        "reserved_name": "a property has a name that Heap keeps for itself",
        "revoked_policy": "the policy that scrubbed it was revoked",
        "too_large": "one event above 1 MiB",
        "too_many_values": "one event of more values than any real one",
        "undeclared_event": "an analytics event whose name `events.toml` does not have",
        "unknown_form": "a container that is not of the documented form",
        "unknown_kind": "a native event of a kind that nobody knows",
        "unshapeable": "it lacks what this recipient's form needs",
        "unsupported_kind": "this recipient has no form for the kind",
        "untagged": "its tags are gone; stopped before it left",
    },
    "dead": {
        "capsule": "its identifiers do not open",
        "capsule_corrupt": "the same: changed on the way, or of another event",
        "capsule_retired_key": "its capsule was sealed to a key that was retired; see keys.md",
        "capsule_mismatch": "its identifiers belong to another event",
        "capsule_unknown_key": "they are sealed to a key that is not here",
        "contract": "what the edge wrote is not what the schema allows",
        "fails_alone": "the recipient failed on it again and again while it took others",
        "invalid_identifier": "an identifier does not fit its profile",
        "invalid_time": "its time is none",
        "key_destroyed": "the key to its identifiers was destroyed",
        "membership_without_account": "it names a membership and not whose",
        "not_an_object": "JSON, but no object",
        "rejected": "the recipient refused it: 400, 422, or an error in a 2xx",
        "scrub_failed": "a treatment failed, or left something it should have found",
        "secret_unreadable": "a secret of the vault cannot be opened",
        "too_large": "above 1 MiB, or than a record on Kafka may hold; at a recipient: 413",
        "too_many_identifiers": "more identifiers than a capsule holds",
        "undecodable": "no JSON, or none that any reader takes",
        "undeliverable": "not taken for three days",
        "unknown_kind": "no record of this kind, or no such sort of identifier",
        "unknown_policy": "scrubbed under a policy that was never live here, or was revoked",
        "unreadable_record": "a damaged record of the log; kept as it is, no letter",
    },
    "held": {"restricted": "the processing of somebody it names is restricted"},
}
"""Every reason there is, by outcome, and what it says: the closed set of a metric's label."""


@dataclass(frozen=True, slots=True)
class Balance:
    """One equation: `left` must equal the sum of `right`."""

    name: str
    left: int
    right: Mapping[str, int]

    @property
    def difference(self) -> int:
        """Zero if the sums agree; positive if something is unaccounted for."""
        return self.left - sum(self.right.values())


@dataclass(frozen=True, slots=True)
class Books:
    """A snapshot of all counts.

    Args:
        entries: `Broker.books`.
        pending: `Broker.pending`.
        recipients: Names of the recipients that have a clean log.
        whole: False for what one gateway alone knows: what became of what it sealed, others know.
        shelved: Whether the log keeps dead and held parcels itself (`telemetry.brokers.Shelf`).
    """

    entries: Mapping[Entry, int]
    pending: Mapping[str, int]
    recipients: tuple[str, ...] = field(default=())
    whole: bool = True
    shelved: bool = False

    def _of(self, stage: str, outcome: str) -> int:
        return sum(
            count
            for entry, count in self.entries.items()
            if entry.stage == stage and entry.outcome == outcome
        )

    @property
    def balances(self) -> list[Balance]:
        """The equations, in the order of an event's way."""
        edge, middle = _EDGE, _PSEUDONYMIZER
        found = [
            Balance(
                "items_in",
                self._of(edge, "items_in"),
                {name: self._of(edge, name) for name in ("dropped", "dead", "sealed")},
            ),
        ]
        if self.whole:
            found.append(
                Balance(
                    "sealed",
                    self._of(edge, "sealed"),
                    {
                        **{n: self._of(middle, n) for n in ("scrubbed", "dropped", "dead", "held")},
                        "pending": self.pending.get(SEALED, 0),
                    },
                )
            )
        found += [
            Balance(
                f"routed to {name}",
                self._of(name, "routed"),
                {
                    **{n: self._of(name, n) for n in ("delivered", "dropped", "dead")},
                    "pending": self.pending.get(clean(name), 0),
                },
            )
            for name in self.recipients
        ]
        if self.shelved:
            found += [self._shelf(DEAD), self._shelf(HELD)]
        return found

    def _shelf(self, stream: str) -> Balance:
        """Say what became of dead or of held parcels."""
        came = sum(
            count
            for entry, count in self.entries.items()
            # A record that cannot be read any more makes no letter: it lies with the lost.
            if entry.outcome == stream
            and entry.stage != stream
            and entry.reason != "unreadable_record"
        )
        ends = {name: self._of(stream, name) for name in ("dropped", "replayed")}
        unreadable = self._of(stream, "dead")
        waiting = self.pending.get(stream, 0)
        return Balance(stream, came, {**ends, "unreadable": unreadable, "pending": waiting})

    @property
    def exact(self) -> bool:
        """Whether every equation holds."""
        return all(balance.difference == 0 for balance in self.balances)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not any(self.pending.get(s, 0) for s in (SEALED, *map(clean, self.recipients)))

    def reasons(self, outcome: str) -> dict[str, int]:
        """Count by reason, over all stages."""
        total: Counter[str] = Counter()
        for entry, count in self.entries.items():
            if entry.outcome == outcome:
                total[entry.reason] += count
        return dict(sorted(total.items()))

    def by_stage(self, outcome: str) -> dict[str, dict[str, int]]:
        """Count by stage and reason."""
        stages: dict[str, dict[str, int]] = {}
        for entry, count in sorted(self.entries.items()):
            if entry.outcome == outcome:
                stages.setdefault(entry.stage, {})[entry.reason] = count
        return stages

    def sent(self) -> dict[str, dict[str, int]]:
        """Count, for each recipient, what was delivered and what was not, for the audit log."""
        outcomes = ("delivered", "dropped", "dead")
        return {name: {o: self._of(name, o) for o in outcomes} for name in self.recipients}

    def as_json(self) -> dict[str, Any]:
        """Give what ``telemetry books --json`` prints."""
        return {
            "events_in": self._of(_EDGE, "items_in"),
            "sealed": self._of(_EDGE, "sealed"),
            "scrubbed": self._of(_PSEUDONYMIZER, "scrubbed"),
            "routed": {name: self._of(name, "routed") for name in self.recipients},
            "delivered": {name: self._of(name, "delivered") for name in self.recipients},
            "resent": {name: self._of(name, "resent") for name in self.recipients},
            "dropped": self.reasons("dropped"),
            "dead": self.reasons("dead"),
            "dropped_at": self.by_stage("dropped"),
            "dead_at": self.by_stage("dead"),
            "held": sum(self.reasons("held").values()),
            "replayed": self._of(DEAD, "replayed"),
            "released": self._of(HELD, "replayed"),
            "waiting": {stream: self.pending.get(stream, 0) for stream in (DEAD, HELD)},
            "pending": {
                "pseudonymizer": self.pending.get(SEALED, 0),
                **{name: self.pending.get(clean(name), 0) for name in self.recipients},
            },
            "exact": self.exact,
        }


def joined(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one of the books of several roles on one host (`Books.as_json`); of one, its own.

    What two of them tell of the same is the same count, read at two moments: the larger is the
    later one.
    """
    whole: dict[str, Any] = dict(answers[0])
    for answer in answers[1:]:
        whole = _join(whole, answer)
    if len(answers) > 1:
        for outcome in ("dropped", "dead"):
            total: Counter[str] = Counter()
            for reasons in whole[f"{outcome}_at"].values():
                total.update(reasons)
            whole[outcome] = dict(sorted(total.items()))
    return whole


def _join(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        both = {**other, **one}
        return {k: _join(one[k], other[k]) if k in one and k in other else both[k] for k in both}
    if isinstance(one, bool):
        return one and other
    if isinstance(one, list):
        return [*one, *(more for more in other if more not in one)]
    return max(one, other)
