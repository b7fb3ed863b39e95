"""How long: calendar periods and the moment at which an event's time is up.

Owns the arithmetic and nothing else; which class has which period is policy.

Source:
    § 188(2), (3) BGB and Art. 3(2)(c) Regulation (EEC, Euratom) 1182/71: a period of months ends
    with the day that bears the same number, else with the month's last day.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

__all__ = ["LEAST_AGE", "Period", "moment_before", "retain_until", "retention_date"]

_PERIOD = re.compile(r"P(?:(?P<years>\d{1,3})Y)?(?:(?P<months>\d{1,4})M)?(?:(?P<days>\d{1,5})D)?")
_SHORTEST_MONTH_DAYS = 28


@dataclass(frozen=True, slots=True)
class Period:
    """A calendar period: whole months and days.

    Attributes:
        months: Calendar months, not a number of days.
        days: Days of 24 hours in UTC.
    """

    months: int = 0
    days: int = 0

    @classmethod
    def parse(cls, text: str) -> Period:
        """Read an ISO 8601 duration of years, months and days.

        Raises:
            ValueError: `text` is something else, or no time at all.

        >>> Period.parse("P1Y2M")
        Period(months=14, days=0)
        """
        match = _PERIOD.fullmatch(text)
        parts = {} if match is None else {k: int(v) for k, v in match.groupdict("0").items()}
        if not any(parts.values()):
            raise ValueError("expected a period such as P12M, P90D or P1Y")
        return cls(months=parts["years"] * 12 + parts["months"], days=parts["days"])

    def may_exceed(self, other: Period) -> bool:
        """Tell whether this period can be longer than `other`, whatever the month.

        >>> Period.parse("P90D").may_exceed(Period.parse("P12M"))
        False
        >>> Period.parse("P365D").may_exceed(Period.parse("P12M"))
        False
        >>> Period.parse("P366D").may_exceed(Period.parse("P12M"))
        True
        """
        if self.days == other.days:
            return self.months > other.months
        if self.months == other.months:
            return self.days > other.days
        epoch_starts = (datetime(2000 + n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(48))
        return any(retain_until(at, self) > retain_until(at, other) for at in epoch_starts)


LEAST_AGE = Period(months=14)
"""A subject's secret lives at least so long: its former one is remembered for a year and a month,
so that everything recipients hold can be erased, and there is never more than one of those."""


def retain_until(at: datetime, period: Period) -> datetime:
    """Last moment at which an event of time `at` may exist anywhere.

    Args:
        at: Aware time of the event.
        period: How long.

    Returns:
        Aware UTC time: the months added to the calendar month, the day clamped to its end.

    >>> retain_until(datetime(2024, 2, 29, 12, tzinfo=UTC), Period(months=12)).isoformat()
    '2025-02-28T12:00:00+00:00'
    """
    at = at.astimezone(UTC)
    year, month0 = divmod(at.year * 12 + at.month - 1 + period.months, 12)
    day = at.day
    if day > _SHORTEST_MONTH_DAYS:
        day = min(day, calendar.monthrange(year, month0 + 1)[1])
    return at.replace(year=year, month=month0 + 1, day=day) + timedelta(days=period.days)


def moment_before(at: datetime, period: Period) -> datetime:
    """Latest moment of which a period is over at `at`.

    >>> moment_before(datetime(2024, 3, 31, tzinfo=UTC), Period(months=1)).isoformat()
    '2024-02-29T00:00:00+00:00'
    """
    return retain_until(at - timedelta(days=period.days), Period(months=-period.months))


def retention_date(until: datetime) -> date:
    """Day to write on what leaves: the moment, rounded down to its UTC date.

    >>> retention_date(datetime(2027, 3, 31, 12, tzinfo=UTC)).isoformat()
    '2027-03-31'
    """
    return until.astimezone(UTC).date()
