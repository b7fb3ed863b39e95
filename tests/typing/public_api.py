"""What an application and an extension write: this must type-check, strictly, as it stands."""

from collections.abc import Collection, Sequence
from typing import assert_type

import telemetry
from scrubbers import AddressProfile, Remark, redact_text, truncate_ip
from scrubbers.engine import Outcome, rescrub, scrub
from scrubbers.model import Scrubbed
from telemetry.rules import CompiledRules
from telemetry.sinks import (
    Delivered,
    Delivery,
    Erasure,
    NotErasable,
    Refused,
    Retry,
    Shaping,
    Sink,
)
from telemetry.sinks import Outcome as Sent

telemetry.init(service="flow", environment="production", release="flow@1.4.2")
telemetry.track("task created", account=42, properties={"priority": "high", "assignees": 2})
telemetry.track("task created", account="42", organization=7)
telemetry.identify(42, properties={"plan": "team"})
with telemetry.request(method="GET", route="/boards/{board}", client_ip="203.0.113.77"):
    try:
        1 / 0  # noqa: B018 - the error is the point
    except ZeroDivisionError as error:
        assert_type(telemetry.capture_exception(error), str | None)
assert_type(telemetry.capture_message("hello"), str | None)
assert_type(telemetry.last_event_id(), str | None)
assert_type(telemetry.flush(timeout_s=1.0), bool)
assert_type(telemetry.stats(), dict[str, int])

text, remarks = redact_text("nothing to see")
assert_type(text, str)
assert_type(remarks, tuple[Remark, ...])
assert_type(truncate_ip("203.0.113.77", profile="strict"), str)
profile = AddressProfile(name="mine", v4_bits=16, v6_bits=32, drop=False)
assert_type(truncate_ip("203.0.113.77", profile=profile), str)


def twice(raw: bytes, rules: CompiledRules) -> Scrubbed:
    """Only a scrub makes `Scrubbed`, and a second scrub takes nothing else."""
    first = scrub(raw, rules)
    assert_type(first, Outcome)
    return rescrub(first.event, rules).event


class ExampleSink(Sink):
    """A sink as CONTRIBUTING.md asks for one."""

    def shape(self, event: Scrubbed, shaping: Shaping) -> bytes:
        """Take the event as it is."""
        return event

    async def send(self, deliveries: Sequence[Delivery]) -> Sequence[Sent]:
        """Say one thing to each."""
        return [Delivered() if d.body else Refused(reason="empty") for d in deliveries] or [Retry()]

    async def erase(self, tokens: Collection[str]) -> Erasure:
        """Refuse."""
        raise NotErasable
