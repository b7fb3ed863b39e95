"""What gateway and pseudonymizer are made of, on one state directory, with a clock of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from scrubbers.detectors import Detectors
from telemetry.edge import Connection, Edge, Item
from telemetry.errors import EventError
from telemetry.identity import (
    DeadLetterOpener,
    Identity,
    Resolved,
    Sealed,
    initialise_development,
    load_dead_letter_opener,
    load_dead_letter_sealer,
)
from telemetry.intake import Intake, Taken
from telemetry.parcel import Parcel
from telemetry.pipeline import Decision, Terms, decide
from telemetry.policy import Policy, PolicyRegister, load_policy, schemas_dir
from telemetry.rules import Schemas
from telemetry.sinks import Sink
from telemetry.sinks.heap import HeapSink
from telemetry.sinks.sentry import SentrySink

NOW = datetime(2026, 11, 22, 10, 15, 42, 123456, tzinfo=UTC)
TENANT = "web"


@cache
def shipped() -> tuple[Policy, Schemas]:
    return compiled(load_policy())


def compiled(policy: Policy) -> tuple[Policy, Schemas]:
    return policy, Schemas(policy, Detectors.compile(policy.detector_table))


EVERY_KIND = (
    "error_event", "session", "sessions", "check_in", "transaction", "span", "log", "trace_metric",
    "feedback", "user_report", "security_report",
)  # fmt: skip


def everything_on(folder: Path) -> Policy:
    """Copy the shipped policy and switch on every kind, with a recipient that promises 90 days."""
    shutil.copytree(schemas_dir() / "policy", folder)
    purposes, recipients = folder / "purposes.toml", folder / "recipients.toml"
    text = purposes.read_text("utf-8")
    kinds = next(line for line in text.split("\n") if '"error_event"' in line)
    purposes.write_text(text.replace(kinds, f"kinds = {json.dumps(EVERY_KIND)}"), "utf-8")
    text = recipients.read_text("utf-8")
    recipients.write_text(text.replace('"P13M"', '"P90D"').replace('"unknown"', '"P90D"'), "utf-8")
    return load_policy(folder)


class World:
    """One installation. `now` may be moved."""

    sinks: ClassVar[Mapping[str, Sink]] = {
        "heap": HeapSink(url="http://127.0.0.1:1", app_id="11"),
        "sentry": SentrySink(dsn="http://" + "5e17" * 8 + "@127.0.0.1:1/1"),
    }

    def __init__(
        self,
        state: Path,
        *,
        now: Callable[[], datetime] | None = None,
        policy: Policy | None = None,
    ) -> None:
        initialise_development(state)
        self.state = state
        self.policy, self.schemas = compiled(policy) if policy else shipped()
        self.now: datetime = NOW
        self.identity = Identity.open(state, environment="development")
        self.identity._now = lambda: self.now
        self.register = PolicyRegister(state / "policies.ndjson")
        self.register.enter(self.policy.digest, "live", NOW)
        self.edge = Edge(self.schemas)
        self.intake = Intake(
            self.policy,
            self.edge,
            Identity.sealer(state),
            load_dead_letter_sealer(state / "keys" / "public.json"),
            now or (lambda: self.now),
        )
        self.terms = Terms(
            policy=self.policy, schemas=self.schemas, register=self.register, sinks=self.sinks
        )

    def close(self) -> None:
        self.identity.close()

    def dead_opener(self) -> DeadLetterOpener:
        where = next(self.state.rglob("dead-letter/keyset.json"))
        return load_dead_letter_opener(where, environment="development")

    def take(self, *items: Item, connection: Connection = Connection()) -> Taken:  # noqa: B008
        return self.intake.take(items, tenant=TENANT, connection=connection)

    def parcel(self, kind: str, event: Mapping[str, Any], event_id: str = "") -> Parcel:
        taken = self.take(Item(kind, json.dumps(event).encode(), event_id))
        (parcel,) = taken.parcels
        return parcel

    def resolve(self, parcel: Parcel) -> Resolved | EventError:
        (found,) = self.identity.resolve(
            [
                Sealed(
                    capsule=parcel.capsule,
                    event_id=parcel.event_id,
                    schema=parcel.kind,
                    occurred_at=parcel.occurred_at,
                    tenant=parcel.tenant,
                )
            ],
            purposes={parcel.purpose},
        )
        return found

    def decide(self, parcel: Parcel) -> Decision:
        return decide(parcel, self.resolve(parcel), self.terms, self.now)
