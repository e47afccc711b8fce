"""The one exception that users of mxort see."""

from __future__ import annotations


class MxortError(Exception):
    """A problem with what the user gave: one line that names the file or node, what was got and expected.

    The command line prints it and exits with status 2. Anything else that escapes from mxort is a bug.
    """


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, for use inside a one-line message."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
