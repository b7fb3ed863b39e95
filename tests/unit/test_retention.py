from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.retention import Period, retain_until, retention_date

TWELVE = Period(months=12)

# § 188 BGB; Art. 3(2)(c) Reg. 1182/71: the day with the same number, else the month's last day.
CALENDAR = [
    ("2024-02-29T12:00+00:00", "P12M", "2025-02-28T12:00+00:00"),
    ("2023-02-28T12:00+00:00", "P12M", "2024-02-28T12:00+00:00"),
    ("2026-03-31T23:59:59.999+00:00", "P12M", "2027-03-31T23:59:59.999+00:00"),
    ("2026-12-31T23:30-05:00", "P12M", "2028-01-01T04:30+00:00"),
    ("2027-03-01T00:00+00:00", "P12M", "2028-03-01T00:00+00:00"),
    ("2026-01-31T00:00+00:00", "P1M", "2026-02-28T00:00+00:00"),
]


@pytest.mark.parametrize(("at", "period", "expected"), CALENDAR)
def test_months_are_calendar_months_and_the_day_is_clamped(
    at: str, period: str, expected: str
) -> None:
    until = retain_until(datetime.fromisoformat(at), Period.parse(period))
    assert until == datetime.fromisoformat(expected)
    assert until.tzinfo is UTC


@pytest.mark.parametrize("text", ["", "P", "12M", "P0M", "PT5H", "P1W", "P-1M", "P1.5M", "P12M "])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a period"):
        Period.parse(text)


@given(st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - bounds
def test_twelve_months_end_on_the_same_day_or_the_last_of_the_month(at: datetime) -> None:
    until = retain_until(at, TWELVE)
    assert (until.year, until.month) == (at.year + 1, at.month)
    assert until.day == at.day or (at.month, at.day, until.day) == (2, 29, 28)
    assert timedelta(days=365) <= until - at <= timedelta(days=366)


@given(
    st.datetimes(timezones=st.just(UTC), max_value=datetime(2900, 1, 1)),  # noqa: DTZ001 - bounds
    st.integers(0, 40),
    st.integers(0, 400),
)
def test_the_date_on_what_leaves_is_never_later_than_the_moment(
    at: datetime, months: int, days: int
) -> None:
    until = retain_until(at, Period(months=months, days=days))
    assert retention_date(until) <= until.date()
    assert until >= at


@pytest.mark.parametrize(
    ("period", "exceeds"), [("P90D", False), ("P365D", False), ("P366D", True), ("P13M", True)]
)
def test_a_period_exceeds_another_if_it_can_be_longer_in_any_month(
    period: str,
    exceeds: bool,
) -> None:
    assert Period.parse(period).may_exceed(TWELVE) is exceeds
