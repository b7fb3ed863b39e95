"""Times, made coarse. Owns the grid; takes no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["coarsen_time"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def coarsen_time(at: datetime, *, seconds: float) -> datetime:
    """Move a time back to the last step of a UTC grid.

    Args:
        at: An aware time. A naive one has no place on the grid.
        seconds: Width of a step, 0.001 or more; whole milliseconds.

    Returns:
        The last multiple of `seconds` since 1970 that is not after `at`, in UTC. Applied twice it
        changes nothing.

    Raises:
        ValueError: `at` is naive or `seconds` is below 0.001. The message does not repeat the time.

    Source:
        Art. 5(1)(c) GDPR: a click to the microsecond joins two recipients' records of it.

    >>> coarsen_time(datetime(2026, 11, 22, 10, 15, 42, 7, tzinfo=UTC), seconds=60)
    datetime.datetime(2026, 11, 22, 10, 15, tzinfo=datetime.timezone.utc)
    """
    step = timedelta(milliseconds=round(seconds * 1000))
    if not step:
        raise ValueError("a step takes 1 millisecond or more")
    if at.tzinfo is None or at.utcoffset() is None:
        raise ValueError("a time without zone cannot be made coarse")
    try:
        return _EPOCH + (at - _EPOCH) // step * step
    except OverflowError:
        # The first year less its zone has no datetime; the earliest step that has one is coarser.
        return datetime.min.replace(tzinfo=UTC)
