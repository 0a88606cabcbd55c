"""The time of a run: a clock that nobody sets while a coordinator lives, and that never goes back between two."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]


def steady() -> Clock:
    """Shows the wall clock's time of now, in UTC, and from here on what has passed since: deadlines count on it."""
    began, since_s = datetime.now(UTC), time.monotonic()
    return lambda: began + timedelta(seconds=time.monotonic() - since_s)


def no_earlier(clock: Clock, than: datetime) -> Clock:
    """The same clock, put forward where it shows less than that; so it goes on, and does not stand until then."""
    ahead = max(timedelta(0), than - clock())
    return lambda: clock() + ahead
