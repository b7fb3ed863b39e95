"""Prometheus metrics: the books, and what the edge has seen. Labels come from closed sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from telemetry.books import Books

__all__ = ["exposition"]


Gauges = Mapping[str, tuple[str, Mapping[str, float]]]
Seen = Mapping[tuple[str, tuple[str, ...]], int]

_SEEN: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "requests": ("Requests answered.", ("dialect", "status")),
    "refusals": ("Requests refused, by the reason that was answered.", ("refusal",)),
    "client_discarded": ("What Sentry clients threw away themselves.", ("reason", "category")),
}


class _Snapshot:
    """Gives one state of the pipeline as metrics."""

    def __init__(self, books: Books, gauges: Gauges, seen: Seen) -> None:
        self._books, self._gauges, self._seen = books, gauges, seen

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        items = CounterMetricFamily(
            "telemetry_items",
            "Items by stage, outcome and reason; see docs/reliability.md for the equations.",
            labels=("stage", "outcome", "reason"),
        )
        for entry, count in sorted(self._books.entries.items()):
            items.add_metric(tuple(entry), count)
        yield items
        pending = GaugeMetricFamily(
            "telemetry_pending", "Parcels that are not finished, by stream.", labels=("stream",)
        )
        for stream, count in sorted(self._books.pending.items()):
            pending.add_metric((stream,), count)
        yield pending
        difference = GaugeMetricFamily(
            "telemetry_books_difference",
            "What the books cannot account for; anything but 0 at rest is a fault.",
            labels=("equation",),
        )
        for balance in self._books.balances:
            difference.add_metric((balance.name,), balance.difference)
        yield difference
        for name, (text, labels) in _SEEN.items():
            counter = CounterMetricFamily(f"telemetry_{name}", text, labels=labels)
            for (what, values), count in sorted(self._seen.items()):
                if what == name:
                    counter.add_metric(values, count)
            yield counter
        for name, (text, by_label) in self._gauges.items():
            family = GaugeMetricFamily(f"telemetry_{name}", text, labels=("of",))
            for label, value in sorted(by_label.items()):
                family.add_metric((label,), value)
            yield family


def exposition(books: Books, gauges: Gauges, seen: Seen) -> bytes:
    """Write the metrics in Prometheus' text format.

    Args:
        books: A snapshot of the counts.
        gauges: Further values: name → (help text, label → value).
        seen: What the gateway counted: (name, labels) → number.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(books, gauges, seen))
    return generate_latest(registry)
