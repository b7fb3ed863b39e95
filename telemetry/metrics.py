"""Prometheus metrics: the books, and what the edge has seen. Labels come from closed sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from telemetry.books import Books

__all__ = ["GAUGES", "METRICS", "exposition"]


Gauges = Mapping[str, Mapping[str, float]]
Seen = Mapping[tuple[str, tuple[str, ...]], int]

_SEEN: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "requests": ("Requests answered.", ("dialect", "status")),
    "refusals": ("Requests refused, by the reason that was answered.", ("refusal",)),
    "client_discarded": ("What Sentry clients threw away themselves.", ("reason", "category")),
}

GAUGES: Final[Mapping[str, str]] = {
    "keys": "Keys by use and state.",
    "keys_overdue": "Keys that should be destroyed by now; anything but 0 for an hour is a fault.",
    "invalid_identifiers": "Identifiers that did not fit their profile, by sort.",
    "undeclared_paths": "Paths of sampled events that no schema declares, by kind.",
    "paused": "Recipients to which nothing is sent by order.",
    "stopped": "Stages that take or send nothing, for whatever reason but an order.",
    "oldest_age_seconds": (
        "Age of the oldest unfinished parcel, by stream; of dead letters since they died."
    ),
    "time_to_loss_seconds": ("When something of a stream would be lost if nothing of it moved on."),
    "room_used_ratio": "Part of a stream's share of the log that is used; log: of the whole quota.",
}
"""Values of the moment, each with the label ``of``, and what they say."""

_OWN: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "items": (
        "Items by stage, outcome and reason; see docs/reliability.md for the equations.",
        ("stage", "outcome", "reason"),
    ),
    "pending": ("Parcels that are not finished, by stream.", ("stream",)),
    "books_difference": (
        "What the books cannot account for; anything but 0 at rest is a fault.",
        ("equation",),
    ),
}

METRICS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    **_OWN,
    **_SEEN,
    **{name: (text, ("of",)) for name, text in GAUGES.items()},
}
"""Every metric, without ``telemetry_``: what it says, and its labels."""


class _Snapshot:
    """Gives one state of the pipeline as metrics."""

    def __init__(self, books: Books, gauges: Gauges, seen: Seen) -> None:
        self._books, self._gauges, self._seen = books, gauges, seen

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        items = CounterMetricFamily("telemetry_items", _OWN["items"][0], labels=_OWN["items"][1])
        for entry, count in sorted(self._books.entries.items()):
            items.add_metric(tuple(entry), count)
        yield items
        text, labels = _OWN["pending"]
        pending = GaugeMetricFamily("telemetry_pending", text, labels=labels)
        for stream, count in sorted(self._books.pending.items()):
            pending.add_metric((stream,), count)
        yield pending
        text, labels = _OWN["books_difference"]
        difference = GaugeMetricFamily("telemetry_books_difference", text, labels=labels)
        for balance in self._books.balances:
            difference.add_metric((balance.name,), balance.difference)
        yield difference
        for name, (text, labels) in _SEEN.items():
            counter = CounterMetricFamily(f"telemetry_{name}", text, labels=labels)
            for (what, values), count in sorted(self._seen.items()):
                if what == name:
                    counter.add_metric(values, count)
            yield counter
        for name, by_label in self._gauges.items():
            family = GaugeMetricFamily(f"telemetry_{name}", GAUGES[name], labels=("of",))
            for label, value in sorted(by_label.items()):
                family.add_metric((label,), value)
            yield family


def exposition(books: Books, gauges: Gauges, seen: Seen) -> bytes:
    """Write the metrics in Prometheus' text format.

    Args:
        books: A snapshot of the counts.
        gauges: Values of the moment: a name of `GAUGES` → label → value.
        seen: What the gateway counted: (name, labels) → number.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(books, gauges, seen))
    return generate_latest(registry)
