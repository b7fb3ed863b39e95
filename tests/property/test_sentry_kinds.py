"""What a client sends as any of Sentry's kinds is shaped so that Sentry reads it, or not sent."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest
from foreign_json import fitting_events, rendered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scrubbers.engine import scrub
from telemetry.errors import EventError
from telemetry.sinks import Delivery, Shaping, Tags
from telemetry.sinks.sentry import _FORMS, SentrySink
from telemetry.testing import SentryStandIn
from telemetry.testing.stand_in import Request

AT = datetime(2026, 3, 31, 9, 15, tzinfo=UTC)
KEY = "5e17" * 8
TAGS = Tags(
    retain_until=date(2027, 3, 31), retention_class="12m", policy="c0ffee123456", notice="2026-03"
)


@pytest.mark.parametrize("kind", sorted(_FORMS))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_any_client_sends_is_shaped_or_refused_and_shows_no_address(
    kind: str, data: st.DataObject
) -> None:
    rules, tree = data.draw(fitting_events(kind))
    try:
        outcome = scrub(json.dumps(rendered(tree, 7)).encode(), rules)
        shaping = Shaping(
            kind=kind,
            delivery_id="3b" * 16,
            occurred_at=AT,
            tokens={"account": "ps1_sentry_u_one"},
            remarks=outcome.remarks,
            tags=TAGS,
        )
        sentry = SentryStandIn()
        sentry.port = 1  # never listens: its rules are asked directly
        sink = SentrySink(dsn=sentry.dsn, encoding="identity")
        body = sink.shape(outcome.event, shaping)
    except EventError:
        return  # it lacks what makes it one
    assert b"vrk" not in body
    one = Delivery(delivery_id="3b" * 16, kind=kind, body=body, occurred_at=AT)
    auth = ("X-Sentry-Auth", f"Sentry sentry_key={KEY}, sentry_version=7")
    request = Request(
        method="POST",
        target="/api/1/envelope/",
        headers=(auth,),
        raw=b"",
        body=sink._envelope([one, one] if _FORMS[kind].shared else [one]),
        at=0.0,
    )
    reply = sentry.answer(request)
    if reply.status == 200:
        assert sentry.addresses() == set()
    else:
        assert reply.status == 400
    assert not any("address" in rule or "container" in rule for rule in sentry.violations)
