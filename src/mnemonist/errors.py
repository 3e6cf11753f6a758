"""Errors that speak to the person who made the request rather than to the one who wrote the code."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one sentence that says what was wrong and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class NotFinite(ValueError):
    """Numbers that are NaN or infinite where they cannot be: of whoever computed them."""


class CannotGoOn(UserError):
    """A run that has begun cannot go on from where it is; what it has done until there is kept, and usable."""


class RunFinished(UserError):
    """A run has taken its last step, so there is nothing to go on with at other settings."""


def nearest(name: object, known: Iterable[str]) -> str:
    """ " (did you mean 'titans'?)" for a misspelt name, or "" when none of the known ones is near."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""
