"""The shipped policy keeps what ``tests/vectors/promised.toml`` says, seen from outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.checks import promises, shipped
from tests.checks.found import check_classes, check_found, check_stays
from tests.checks.promises import Installation, loaded, shipped_tables, written

IDS = [row.detector.id for row in shipped.detectors().rows]
CHECKS = [getattr(promises, name) for name in promises.__all__ if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_shipped_policy_keeps_its_promise(check: Callable[[Installation], None]) -> None:
    check(Installation.shipped())


@pytest.mark.parametrize("name", IDS)
def test_a_detector_finds_texts_that_are_not_its_own_examples(name: str) -> None:
    check_found(shipped.detectors(), [name])


def test_look_alikes_that_only_a_validator_knows_stay() -> None:
    check_stays(shipped.detectors(), IDS)


def test_a_policy_may_list_values_that_stay_unless_they_are_secrets() -> None:
    check_classes(shipped.policy().detector_table, IDS)


def test_a_policy_that_is_written_anew_is_the_same_policy() -> None:
    again = loaded({name: dict(table) for name, table in shipped_tables().items()})
    assert again.digest == shipped.policy().digest
    assert "=" in written({"a b": {"c": ["§", True, 1.5]}})
