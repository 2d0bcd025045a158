"""A fork beside threads that use OpenSSL: the child can use it too, and Ctrl-C is not swallowed."""

from __future__ import annotations

import hmac
import os
import signal
import ssl
import threading
from typing import NoReturn

import pytest

from stretto.errors import StrettoError
from stretto.links import forking


def use() -> None:
    hmac.digest(b"key", b"message", "sha256")
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def can_it() -> NoReturn:
    """Ends with 0 if a thread of this process can use OpenSSL."""
    trying = threading.Thread(target=use, daemon=True)
    trying.start()
    trying.join(10)
    os._exit(trying.is_alive())


def test_beside_threads_that_use_openssl_every_child_can_use_it() -> None:
    """Without the trial, one fork in ten here gives a child that stands still."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            used = threading.Thread(target=use)
            used.start()
            used.join()

    busy = [threading.Thread(target=work) for _ in range(3)]
    for thread in busy:
        thread.start()
    try:
        ends = [os.waitpid(forking.fork(can_it), 0)[1] for _ in range(20)]
    finally:
        over.set()
        for thread in busy:
            thread.join()
    assert ends == [0] * 20


def test_where_no_child_can_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "_sound", lambda: False)
    with pytest.raises(StrettoError, match=r"after stretto.join\(\)"):
        forking.fork(can_it)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_ctrl_c_in_the_moment_of_the_fork_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = forking._try

    def interrupted(child: object) -> int | None:
        os.kill(os.getpid(), signal.SIGINT)
        return attempt(child)  # type: ignore[arg-type]

    forked: list[int] = []
    monkeypatch.setattr(forking, "_try", lambda child: forked.append(interrupted(child) or 0) or forked[-1])
    with pytest.raises(KeyboardInterrupt):
        forking.fork(can_it)
    assert os.waitpid(forked[0], 0)[1] == 0
