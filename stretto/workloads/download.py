"""Files of known size and checksum: found in a directory, or fetched once into a cache. Nothing unverified is used."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stretto.errors import DataError

PATIENCE = 30.0
"""Seconds without a byte before a mirror is given up."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One published file."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a data set, and where they are published; a mirror is a URL that ends in a slash."""

    name: str
    files: tuple[Remote, ...]
    mirrors: tuple[str, ...]


def locate(source: Source, directory: Path | None, cache: Path | None = None) -> Path:
    """The folder with all files of ``source``, each verified.

    A given ``directory`` (or the folder of the source's name in it) must hold them: it is never written to. Without one
    they are fetched into ``cache`` (``~/.cache/stretto``) if they are not there yet.

    Raises:
        DataError: files are missing, differ from what was published, or cannot be fetched.
    """
    if directory is None:
        folder = (cache or Path.home() / ".cache" / "stretto") / source.name
        for file in source.files:
            if not (folder / file.name).exists():
                fetch(file, source.mirrors, folder)
    else:
        folder = _folder_with(source, directory)
    for file in source.files:
        verify(file, folder / file.name, source)
    return folder


def verify(file: Remote, path: Path, source: Source) -> None:
    """Raises :class:`DataError` unless ``path`` is, byte for byte, what was published."""
    again = f"remove it and fetch it again, for example from {source.mirrors[0]}{file.name}"
    try:
        size = path.stat().st_size
        if size != file.size:
            raise DataError(f"{path} is truncated or damaged: expected {file.size} bytes, found {size}; {again}")
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from e
    if found != file.sha256:
        raise DataError(f"{path} is damaged: expected sha256 {file.sha256}, found {found}; {again}")


def fetch(file: Remote, mirrors: Sequence[str], folder: Path) -> None:
    """Fetch one file from the first mirror that gives the right bytes; it appears in ``folder`` whole or not at all."""
    failures = []
    for mirror in mirrors:
        try:
            content = _bytes_of(mirror + file.name, file.size)
        except (OSError, http.client.HTTPException) as e:
            failures.append(f"{mirror}: {e}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == file.sha256:
            return _put(content, folder / file.name)
        failures.append(f"{mirror}: other bytes (sha256 {found[:12]}…, expected {file.sha256[:12]}…)")
    raise DataError(f"cannot fetch {file.name}; bring it and name its folder with --data DIR ({'; '.join(failures)})")


def _folder_with(source: Source, directory: Path) -> Path:
    if not directory.is_dir():
        raise DataError(f"{directory} is not a directory; --data (or $STRETTO_DATA) names the one with the data files")
    for folder in (directory / source.name, directory):
        missing = [file.name for file in source.files if not (folder / file.name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(source.files):
            break
    raise DataError(
        f"{source.name}: {folder} lacks {', '.join(missing)}; name a directory that has them, or none to fetch them"
    )


def _bytes_of(url: str, size: int) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "stretto"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        content: bytes = answer.read(size + 1)
        return content


def _put(content: bytes, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as e:
        raise DataError(f"cannot write {path}: {e.strerror}; name a folder with the data by --data DIR") from e
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError as e:
        Path(name).unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {e.strerror}") from e
