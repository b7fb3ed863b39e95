"""What must not type-check. Each marked line is an error, and there is no other."""

from datetime import UTC, date, datetime

from scrubbers.engine import rescrub
from scrubbers.model import Scrubbed
from telemetry.parcel import Parcel
from telemetry.rules import CompiledRules
from telemetry.sinks import Delivery, Erasure, Shaping, Sink, Tags


def forgets_to_scrub(raw: bytes, rules: CompiledRules, sink: Sink, shaping: Shaping) -> bytes:
    """Hand raw bytes to what takes scrubbed ones."""
    rescrub(raw, rules)  # expect: arg-type
    return sink.shape(raw, shaping)  # expect: arg-type


def forgets_retention() -> Tags:
    """Leave out the day on which the data must be gone."""
    return Tags(retention_class="12m", policy="0", notice="1")  # expect: call-arg


def forgets_the_purpose(at: datetime) -> Parcel:
    """Make a parcel that nobody says the reason of."""
    return Parcel(  # expect: call-arg
        event_id="0" * 32,
        kind="error_event",
        tenant="shop",
        retention_class="12m",
        legal_basis="6(1)(f)",
        notice_version="1",
        policy_digest="0",
        occurred_at=at,
        received_at=at,
        retain_until=at,
    )


def extends_retention(tags: Tags, parcel: Parcel) -> None:
    """Change what nobody may change."""
    tags.retain_until = date(2099, 1, 1)  # expect: misc
    parcel.retain_until = datetime(2099, 1, 1, tzinfo=UTC)  # expect: misc


class SinkWithoutErasure(Sink):
    """A recipient that nobody asked how it erases."""

    def shape(self, event: Scrubbed, shaping: Shaping) -> bytes:
        """Take the event as it is."""
        return event


def make() -> tuple[Sink, Delivery, Erasure]:
    """Use it."""
    sink = SinkWithoutErasure()  # expect: abstract
    at = "now"
    delivery = Delivery(delivery_id="0", kind="k", body=b"", occurred_at=at)  # expect: arg-type
    return sink, delivery, Erasure(reference="1", complete="yes")  # expect: arg-type
