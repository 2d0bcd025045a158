"""Where checkpoints lie: a folder, or whatever fsspec reaches (``memory://``, ``s3://``, ``gs://``, ``hdfs://``, …).

In a folder a file appears whole or not at all: it is written under another name, brought to the disk, and renamed.
Other places get one put a file; some show a file while it is being written, so a checkpoint's last file carries a
digest of itself.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stretto.errors import DataError, UsageError

Chunks: TypeAlias = Iterable[bytes | memoryview]


class Place(Protocol):
    """Files by relative path (``"run/step/part-0.json"``). All raise :class:`DataError`, in words."""

    def names(self, folder: str) -> dict[str, int]:
        """What is in a folder, and the sizes in bytes; a folder in it has size -1. A missing one is empty."""
        ...

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """A file to read; errors while it is read are put into words, too."""
        ...

    def put(self, path: str, chunks: Chunks) -> int:
        """Write a file, and the folders it needs; returns its size."""
        ...

    def remove(self, path: str) -> None:
        """A file, or a folder with all that is in it."""
        ...


def place(where: str | os.PathLike[str]) -> Place:
    """A folder's path or an fsspec URL as a place. Nothing is made.

    Raises:
        UsageError: no such protocol, or a package is missing that it needs.
        DataError: it cannot be reached.
    """
    text = os.fspath(where)
    if "://" not in text and "::" not in text:
        return Folder(Path(text))
    called = re.sub(r"//[^/@]*@", "//…@", text)  # without the password
    try:
        fs, root = fsspec.core.url_to_fs(text)
    except (ImportError, ValueError) as e:
        raise UsageError(f"cannot keep checkpoints in {called}: {e}") from e
    except Exception as e:  # some connect at once, and raise errors of their own
        raise DataError(f"cannot reach {called}: {e}") from e
    return Folder(Path(root)) if isinstance(fs, LocalFileSystem) else Store(fs, root, called)


class Folder:
    """A folder of a local (or mounted) file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str) -> dict[str, int]:
        with _in_words("read", f"{self.root / folder}"):
            sizes = {}
            with suppress(FileNotFoundError), os.scandir(self.root / folder) as found:
                for entry in found:
                    with suppress(FileNotFoundError):  # others write and rename here meanwhile
                        sizes[entry.name] = -1 if entry.is_dir() else entry.stat().st_size
            return sizes

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        with _in_words("read", f"{self.root / path}"), (self.root / path).open("rb") as file:
            yield file

    def put(self, path: str, chunks: Chunks) -> int:
        target = self.root / path
        unfinished = target.with_name(f".{target.name}.new")
        with _in_words("write", f"{target}"):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with unfinished.open("wb") as file:
                    size = sum(file.write(c) for c in chunks)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(target)
                self._bring_to_disk(target.parent)
                return size
            finally:
                with suppress(OSError):
                    unfinished.unlink()

    def remove(self, path: str) -> None:
        target = self.root / path
        with _in_words("remove", f"{target}"), suppress(FileNotFoundError):
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()

    def _bring_to_disk(self, folder: Path) -> None:
        """A name is as durable as the folders that hold it, up to the root's own. Some network file systems cannot."""
        for at in (folder, *folder.parents):
            with suppress(OSError):
                fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            if at == self.root.parent:
                return


class Store:
    """Any other file system of fsspec; ``called`` is its URL, for people."""

    def __init__(self, fs: Any, root: str, called: str) -> None:
        self.fs, self.root, self.called = fs, root.rstrip("/"), called.rstrip("/")

    def __str__(self) -> str:
        return self.called

    def names(self, folder: str) -> dict[str, int]:
        with _in_words("read", f"{self.called}/{folder}"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
            sizes = {e["name"].rstrip("/").rpartition("/")[2]: _size(e) for e in found}
            return {name: size for name, size in sizes.items() if name}

    @contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        with _in_words("read", f"{self.called}/{path}"), self.fs.open(self._at(path), "rb") as file:
            yield file

    def put(self, path: str, chunks: Chunks) -> int:
        at = self._at(path)
        with _in_words("write", f"{self.called}/{path}"):
            # The asynchronous ones are object stores: they have no folders, and this could make a bucket nobody wanted.
            if not self.fs.async_impl:
                self.fs.makedirs(at.rpartition("/")[0], exist_ok=True)
            with self.fs.open(at, "wb") as file:  # closed, and so put, also when it fails: what is torn is not read
                size = 0
                for chunk in chunks:
                    file.write(chunk)
                    size += len(chunk)
            return size

    def remove(self, path: str) -> None:
        with _in_words("remove", f"{self.called}/{path}"), suppress(FileNotFoundError):
            self.fs.rm(self._at(path), recursive=True)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")


def _size(entry: dict[str, Any]) -> int:
    return -1 if entry["type"] == "directory" else int(entry["size"] or 0)


@contextmanager
def _in_words(doing: str, what: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as e:  # each file system of fsspec raises errors of its own
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e) or type(e).__name__
        number = e.errno if isinstance(e, OSError) and e.errno else 0
        raise DataError(f"cannot {doing} {what.rstrip('/')}: {reason}{_NEXT.get(number, '')}") from e


_NEXT = {
    errno.ENOSPC: "; free space there, keep fewer checkpoints, or name another place",
    errno.EDQUOT: "; free space there, keep fewer checkpoints, or name another place",
    errno.EROFS: "; name a place that can be written to",
    errno.EACCES: "; name a place that can be written to, or change who owns it",
    errno.EPERM: "; name a place that can be written to, or change who owns it",
    errno.ENOTDIR: "; name a folder",
}
