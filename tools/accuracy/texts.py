"""Texts of four kinds, each in a part to test on and another to calibrate on."""

from __future__ import annotations

import gzip
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from samples.models import PLAYS, ModelError, plays

DICTIONARY = "dict-gcide"
"""Debian's package of Webster's dictionary of 1913 with its supplements (public domain, GPL)."""

_ENTRIES, _ENTRY = 160, 4000
"""Passages of the dictionary at equal distances, and their letters: the whole has forty million."""


def reference() -> str:
    """Python's language reference."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def passages(kind: str, cache: Path) -> tuple[list[str], list[str]]:
    """(texts to test on, texts to calibrate on) of a kind in :data:`KINDS`. Raises ModelError where it is not had."""
    return KINDS[kind](cache)


def _reference(cache: Path) -> tuple[list[str], list[str]]:
    whole = reference()
    end = len(whole) // 10  # of which the first 2048 tokens are tested on
    return [whole[:end]], [whole[end:]]


def _plays(cache: Path) -> tuple[list[str], list[str]]:
    files = [(plays(cache) / name).read_text("latin-1") for name in PLAYS.members.values()]
    return files[-1:], files[:-1]


def _dictionary(cache: Path) -> tuple[list[str], list[str]]:
    return _split(list(_entries(cache)))


def _code(cache: Path) -> tuple[list[str], list[str]]:
    """Python's own library, each file from behind its licence and imports on."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    sources = [file.read_text(errors="replace") for file in files]
    return _split([source[3000:8000] for source in sources if len(source) > 8000])


KINDS = {"reference": _reference, "plays": _plays, "dictionary": _dictionary, "code": _code}


def _split(parts: list[str]) -> tuple[list[str], list[str]]:
    """Every fifth is tested on."""
    return parts[2::5], [part for i, part in enumerate(parts) if i % 5 != 2]


def _entries(cache: Path) -> Iterator[str]:
    folder = cache / DICTIONARY
    file = folder / "usr/share/dictd/gcide.dict.dz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for command in (["apt-get", "download", DICTIONARY], ["sh", "-c", f"dpkg -x {DICTIONARY}_*.deb ."]):
            try:
                subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
            except (OSError, subprocess.CalledProcessError) as error:
                raise ModelError(f"{DICTIONARY}: cannot be had from Debian's packages: {error}") from None
    whole = gzip.decompress(file.read_bytes()).decode(errors="replace")
    for start in range(0, len(whole) - _ENTRY, len(whole) // _ENTRIES):
        yield whole[start : start + _ENTRY]
