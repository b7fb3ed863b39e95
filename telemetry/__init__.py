"""Milchglas: telemetry that keeps a privacy notice.

Two lines, and nothing personal leaves the process except ids that the gateway seals::

    telemetry.init(service="flow", environment="production")
    telemetry.track("board opened", account=42, properties={"columns": 5})

None of these functions raises, and none waits for the network except `flush` and `shutdown`
(docs/sdk.md).
"""

from telemetry.client import (
    capture_exception,
    capture_message,
    flush,
    identify,
    init,
    last_event_id,
    request,
    shutdown,
    stats,
    track,
)

__all__ = [
    "capture_exception",
    "capture_message",
    "flush",
    "identify",
    "init",
    "last_event_id",
    "request",
    "shutdown",
    "stats",
    "track",
]
