"""Waiting for a condition, never for time."""

import contextlib
import time

# Seconds until something that has to happen counts as something that does not.
DEADLINE = 30


class NotInTimeError(AssertionError):
    pass


def eventually(what: str, check, seconds: float = DEADLINE):
    """What `check` returns, once it is true. A connection that is refused, or another OSError, is not true yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found := check():
                return found
        time.sleep(0.05)
    raise NotInTimeError(f"waited {seconds:.0f} s for: {what}")
