"""SHA-256 beside other work: of files that are read anyway, and of a file while it is written.

A hash needs no Python while it reads on, so a thread for it costs the others nothing where there is a second core.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 22


def sha256_of(files: Sequence[Path], stop: threading.Event | None = None) -> str:
    """Of the files' bytes one after the other. ``stop`` ends it early, with what is then no digest of theirs."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                if stop is not None and stop.is_set():
                    return ""
    return digest.hexdigest()


@contextmanager
def beside(files: Sequence[Path]) -> Iterator[Future[str]]:
    """:func:`sha256_of` in a thread, which ends with the block."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        try:
            yield threads.submit(sha256_of, files, stop)
        finally:
            stop.set()


class Follower:
    """Hashes a file behind its writer. :meth:`close` where the digest is not wanted."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb", buffering=0)
        self._digest = hashlib.sha256()
        self._threads = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def advance(self, end: int) -> None:
        """The file is written up to ``end``, and flushed."""
        self._last = self._threads.submit(self._follow, end)

    def _follow(self, end: int) -> None:
        while (left := end - self._file.tell()) > 0 and (chunk := self._file.read(min(left, _CHUNK_BYTES))):
            self._digest.update(chunk)

    def hexdigest(self, end: int) -> str:
        """Of all ``end`` bytes. Raises OSError where the file cannot be read."""
        self.advance(end)
        assert self._last is not None
        self._last.result()
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._file.close()
