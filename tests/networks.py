"""Networks of their own for tests: a process with a network namespace that has loopback alone, up or down."""

from __future__ import annotations

import ast
import ctypes
import fcntl
import os
import socket
import struct
import traceback
from collections.abc import Callable
from typing import Any

import pytest

_NEWNET = 0x40000000
_SIOCSIFFLAGS, _UP = 0x8914, 0x1
_NO_RIGHT = 77


def in_a_network_of_its_own(function: Callable[[], Any]) -> Any:
    """``function()`` in a process with a network namespace of its own, with loopback alone; skips if there is none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET):
                code = _NO_RIGHT
            else:
                set_loopback(True)
                os.write(writing, repr(function()).encode())
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status) == _NO_RIGHT:
        pytest.skip("a network namespace needs the right to make one (CAP_SYS_ADMIN): run as root")
    assert status == 0
    return ast.literal_eval(said.decode())


def set_loopback(up: bool) -> None:
    """Put this network's only cable in, or pull it: nothing arrives, and nobody is told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP if up else 0))
