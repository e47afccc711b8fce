"""Which mxort this is."""

from importlib.metadata import PackageNotFoundError, version


def mxort_version() -> str:
    """Version of the installed package; "0+unknown" in a source tree that is not installed."""
    try:
        return version("mxort")
    except PackageNotFoundError:
        return "0+unknown"
