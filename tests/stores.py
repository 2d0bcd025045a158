"""Real ZooKeeper and etcd servers for tests, from Debian's packages, each in a folder of its own on free ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

JAR = Path("/usr/share/java/zookeeper.jar")


class Server:
    """One server process; :meth:`kill` and :meth:`start` it at will, its data stays."""

    def __init__(self, command: list[str], address: str, log: Path) -> None:
        self.address = address
        self._command, self._log = command, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
        host, port = self.address.rpartition("://")[2].split(":")
        ends = time.monotonic() + 60
        while time.monotonic() < ends and self._process.poll() is None:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the server did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def zookeeper(folder: Path) -> Server:
    if not JAR.exists() or shutil.which("java") is None:
        pytest.skip("no ZooKeeper is installed: apt-get install zookeeper")
    (port,) = free_ports(1)
    config = folder / "zoo.cfg"
    config.write_text(
        f"tickTime=500\ndataDir={folder}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n"
    )
    command = ["java", "-Xmx128m", "-cp", str(JAR), "org.apache.zookeeper.server.ZooKeeperServerMain", str(config)]
    return Server(command, f"zk://127.0.0.1:{port}", folder / "log")


def etcd(folder: Path) -> Server:
    binary = shutil.which("etcd")
    if binary is None:
        pytest.skip("no etcd is installed: apt-get install etcd-server")
    clients, peers = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    options = {
        "data-dir": folder,
        "listen-client-urls": clients,
        "advertise-client-urls": clients,
        "listen-peer-urls": peers,
        "initial-advertise-peer-urls": peers,
        "initial-cluster": f"default={peers}",
        "log-level": "error",
    }
    command = [binary, *(f"--{name}={value}" for name, value in options.items())]
    return Server(command, clients.replace("http", "etcd"), folder / "log")


SERVERS: dict[str, Callable[[Path], Server]] = {"zk": zookeeper, "etcd": etcd}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()
