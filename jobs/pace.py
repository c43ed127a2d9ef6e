"""How fast a stage is, and how long the rest of it will take."""

from collections import deque

RECENT_S, SURE_AFTER_S, SURE_AFTER_SHARE = 30.0, 5.0, 0.03
"""The pace is that of the last so many seconds; nothing is said of the time left before so much is done."""
WARM_UP_S = 2.0
"""What is done by then was mostly there from an earlier run, and says nothing of the pace."""


class Pace:
    """How much is done, and how long the rest will take, at the pace of the last seconds."""

    def __init__(self, total: int, now: float) -> None:
        self.total = total
        self.started = now
        self.done = 0
        self.recent: deque[tuple[float, int]] = deque([(now, 0)])

    def advance(self, amount: int, now: float) -> None:
        """`amount` more is done at the time `now`, in seconds."""
        if amount == 0:
            return
        first = self.done == 0
        self.done += amount
        if first or now - self.started < WARM_UP_S:
            self.recent.clear()
        self.recent.append((now, self.done))
        while len(self.recent) > 2 and now - self.recent[1][0] >= RECENT_S:
            self.recent.popleft()

    def rate(self, now: float) -> float | None:
        """Units a second of late; None while nothing was done after the first."""
        since, done = self.recent[0]
        return (self.done - done) / (now - since) if self.done > done and now > since else None

    def left(self, now: float) -> float | None:
        """Seconds to the end; None while too little is known."""
        since, done = self.recent[0]
        sure = now - since >= SURE_AFTER_S and self.done >= SURE_AFTER_SHARE * self.total
        return (now - since) / (self.done - done) * (self.total - self.done) if sure and self.done > done else None
