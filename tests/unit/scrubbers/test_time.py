from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from scrubbers import coarsen_time


def test_a_time_moves_back_to_the_minute_in_utc() -> None:
    at = datetime(2026, 1, 1, 0, 30, 59, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert coarsen_time(at, seconds=60) == datetime(2025, 12, 31, 22, 30, tzinfo=UTC)
    assert coarsen_time(at, seconds=60).tzinfo is UTC


def test_a_time_before_1970_moves_back_too() -> None:
    at = datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert coarsen_time(at, seconds=60) == datetime(1969, 12, 31, 23, 59, tzinfo=UTC)


def test_the_first_moment_of_all_is_no_error() -> None:
    first = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
    assert coarsen_time(first, seconds=86_400 * 7).year == 1


def test_a_naive_time_and_a_step_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="zone"):
        coarsen_time(datetime(2026, 1, 1), seconds=60)  # noqa: DTZ001
    with pytest.raises(ValueError, match="1 millisecond"):
        coarsen_time(datetime(2026, 1, 1, tzinfo=UTC), seconds=0)
