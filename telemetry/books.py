"""The books: what came in, what became of it, and whether the sums agree.

Items are counted at the edge and by the pseudonymizer, deliveries (one for each item and recipient)
by the forwarders. Three equations hold exactly at every moment at which nobody is writing::

    items_in = dropped at edge + dead at edge + sealed
    sealed   = scrubbed + dropped + dead + held + pending
    routed   = delivered + dropped + dead + pending          for each recipient

Repeats (``resent``) stand outside: they are no outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from telemetry.brokers import SEALED, Entry, clean

__all__ = ["Balance", "Books"]

_EDGE: Final = "edge"
_PSEUDONYMIZER: Final = "pseudonymizer"


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
    """

    entries: Mapping[Entry, int]
    pending: Mapping[str, int]
    recipients: tuple[str, ...] = field(default=())
    whole: bool = True

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
        return found

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
            "pending": {
                "pseudonymizer": self.pending.get(SEALED, 0),
                **{name: self.pending.get(clean(name), 0) for name in self.recipients},
            },
            "exact": self.exact,
        }
