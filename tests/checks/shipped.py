"""The policy as shipped, compiled once for all checks of a process."""

from __future__ import annotations

from functools import cache

from scrubbers.detectors import Detectors
from telemetry.policy import Policy, load_policy, schemas_dir
from telemetry.rules import CompiledRules, Schemas

__all__ = ["detectors", "policy", "rules_of", "schemas"]


@cache
def policy() -> Policy:
    return load_policy(schemas_dir() / "policy")


@cache
def detectors() -> Detectors:
    return Detectors.compile(policy().detector_table)


@cache
def schemas() -> Schemas:
    return Schemas(policy(), detectors())


def rules_of(kind: str, event: str = "page viewed") -> CompiledRules:
    """Give the rules of a kind; of analytics, those of one declared event."""
    return schemas().rules_for(kind, b'{"event":"%s"}' % event.encode())
