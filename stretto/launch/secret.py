"""Secrets for runs that were given none, and secrets kept in files: readable by their owner alone, or refused.

Agents of one machine derive the secret of their job from a key that one private file holds for this user, so that
nothing needs to be passed between them and nothing accumulates.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from stretto.errors import UsageError

SHORTEST: Final = 16
HOW: Final = "make one with: python3 -c 'import secrets; print(secrets.token_hex(16))'"
_LONGEST: Final = 4096


def new_secret() -> str:
    """128 random bits as text."""
    return secrets.token_hex(16)


def checked(secret: str, source: str) -> str:
    """``secret`` itself, where it is long enough not to be guessed; ``source`` says where it came from."""
    if len(secret) < SHORTEST:
        raise UsageError(f"the secret in {source} has {len(secret)} characters, at least {SHORTEST} are needed; {HOW}")
    return secret


def secret_in(path: Path) -> str:
    """The secret in a file that only its owner can read; blanks around it are dropped."""
    return checked(_read_private(path).strip(), str(path))


def job_secret(job: str, runtime: str | None) -> str:
    """A secret that every agent of ``job`` of this user on this machine derives alike.

    Args:
        job: names the job; two jobs get two secrets.
        runtime: the user's private runtime directory (``$XDG_RUNTIME_DIR``), where there is one.
    """
    directory = _private_directory(runtime)
    key = directory / "key"
    if not key.exists():
        _create_once(key, new_secret())
    return hmac.digest(_read_private(key).encode(), job.encode(), "sha256").hex()


def _private_directory(runtime: str | None) -> Path:
    usable = runtime is not None and os.path.isdir(runtime) and os.access(runtime, os.W_OK)
    directory = Path(runtime, "stretto") if runtime is not None and usable else Path(f"/tmp/stretto-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UsageError(
            f"{directory} is not a directory that only this user can enter, so no secret can be kept there; "
            "remove it, or set STRETTO_SECRET"
        )
    return directory


def _create_once(path: Path, text: str) -> None:
    """Make a private file that is complete from its first moment; whoever comes first wins."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as f:
        f.write(text)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _read_private(path: Path) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), encoding="utf-8") as f:
            found = os.fstat(f.fileno())
            if found.st_mode & 0o077 or found.st_uid not in (os.getuid(), 0):
                raise UsageError(f"others can read the secret in {path}; run: chmod 600 {path}")
            return f.read(_LONGEST)
    except (OSError, UnicodeDecodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "it is not text"
        raise UsageError(f"cannot read the secret in {path}: {why}; {HOW}") from e
