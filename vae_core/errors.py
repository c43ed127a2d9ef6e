"""The one exception family: every error a user can put right, with a message that says how."""


class LatentbitsError(Exception):
    """Something failed; the message names the thing, the place and the remedy."""

    exit_status = 1


class Misuse(LatentbitsError):
    """The request itself cannot be met: a wrong path, field, option or combination."""

    exit_status = 2


class Damaged(LatentbitsError):
    """A file is there, but is not what was written: truncated, altered or unreadable."""


class Unfinished(Misuse):
    """An artifact that was begun and never completed; running its stage again finishes it."""


class Stale(Misuse):
    """An artifact that was made from other inputs or settings than the ones now asked for."""
