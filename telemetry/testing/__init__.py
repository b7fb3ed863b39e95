"""Stand-in recipients, conformance suites and canaries for tests of whoever uses or extends this.

Everything is imported when it is first named: the pytest plug-in lies in this package and loads in
every test run of a machine that has the distribution installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from telemetry.testing.canaries import Canaries
    from telemetry.testing.heap import HeapStandIn
    from telemetry.testing.leaks import Leaks
    from telemetry.testing.sentry import SentryStandIn
    from telemetry.testing.sinks import SinkConformance

__all__ = ["Canaries", "HeapStandIn", "Leaks", "SentryStandIn", "SinkConformance"]

_MODULES: Final = {
    "Canaries": "canaries",
    "HeapStandIn": "heap",
    "Leaks": "leaks",
    "SentryStandIn": "sentry",
    "SinkConformance": "sinks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
