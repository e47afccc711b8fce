"""Writing a folder so that it appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import TracebackType

from mxort.converters.staged_output import synchronise, writing
from mxort.errors import MxortError
from mxort.models.folder import is_model_folder


class StagedFolder:
    """A folder that appears at ``path`` on :meth:`commit`, in place of an empty one or, with ``overwrite``, of models.

    A context manager. Everything is written into a temporary folder beside the target, which leaving the block
    removes. A process killed while :meth:`commit` puts the new in the place of the old may leave the old in that
    temporary folder, whole. ``overwrite`` None: nobody is offered to replace anything. Raises MxortError for a target
    that cannot be: inside ``source`` or around it, a folder of something else.
    """

    def __init__(self, path: str | os.PathLike[str], source: Path, overwrite: bool | None = None) -> None:
        self.path = Path(path)
        self._target = self.path.resolve()  # of a link, the folder behind it is replaced
        self._staging: Path | None = None
        self._refuse_bad_target(source.resolve(), overwrite)

    def _refuse_bad_target(self, source: Path, overwrite: bool | None) -> None:
        path, target = self.path, self._target
        if not target.parent.is_dir():
            raise MxortError(f"{path}: cannot write: the folder {path.parent} does not exist")
        if target.exists() and not target.is_dir():
            raise MxortError(f"{path}: cannot write: it exists and is no folder")
        if target == source or target.is_relative_to(source) or source.is_relative_to(target):
            raise MxortError(f"{path}: the output and the input {source} would be one inside the other")
        if not target.exists() or not any(target.iterdir()):
            return
        if not overwrite:
            hint = "" if overwrite is None else " (--overwrite replaces it)"
            raise MxortError(f"{path}: the folder is not empty{hint}")
        if not is_model_folder(target):
            raise MxortError(f"{path}: --overwrite replaces folders of models only, which this is not")

    def __enter__(self) -> StagedFolder:
        with writing(self.path):
            name = f".{self._target.name}."
            self._staging = Path(tempfile.mkdtemp(prefix=name, dir=self._target.parent))
            self.staged.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Errors of others that write into the folder name files by where they are to be."""
        with writing(self.path):
            try:
                yield
            except MxortError as error:
                raise MxortError(str(error).replace(str(self.staged), str(self.path))) from None

    @property
    def staged(self) -> Path:
        """Where the folder is before :meth:`commit`."""
        assert self._staging is not None, "used outside of its with block"
        return self._staging / self._target.name

    def place(self, file: PurePath) -> Path:
        """Where to write ``file``, which is relative to the folder; the folder that it is in exists."""
        path = self.staged / file
        with writing(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def copy(self, source: Path, file: PurePath) -> int:
        """Copies a file, what a link points to rather than the link -> its bytes."""
        path = self.place(file)
        with writing(self.path):
            shutil.copy(source, path)
            synchronise(path)
            return path.stat().st_size

    def write(self, text: str, file: PurePath) -> int:
        """Writes a file of text -> its bytes."""
        path = self.place(file)
        with writing(self.path):
            path.write_text(text, encoding="utf-8")
            synchronise(path)
            return path.stat().st_size

    def commit(self) -> None:
        """Puts the folder in its place; on failure the old one is as before."""
        before = self.staged.with_name("before" + self._target.name)
        with writing(self.path):
            replaced = self._target.exists()
            if replaced:
                self._target.rename(before)
            try:
                self.staged.rename(self._target)
            except OSError:
                if replaced:
                    before.rename(self._target)
                raise
            synchronise(self._target.parent)
