"""Plain TCP between hosts of laboratory.py: what the network itself gives.

``laboratory_stream.py receive OWN TOTAL NBYTES`` and ``... send TO TOTAL NBYTES``: messages of NBYTES there and back,
then a stream of TOTAL bytes. The receiver prints the stream's rate, the sender half a message's trip.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time

PORT = 29470
TRIPS = 10
ROOM = 1 << 18
PATIENCE = 20.0


def receive(own: str, total: int, nbytes: int) -> None:
    with socket.create_server((own, PORT)) as server:
        stream, _ = server.accept()
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(TRIPS):
        stream.sendall(_exactly(stream, nbytes))
    room = bytearray(ROOM)
    got, half, half_at = 0, 0, 0.0
    while got < total:
        got += stream.recv_into(room)
        if not half_at and got >= total / 2:
            half, half_at = got, time.monotonic()
    rate = (got - half) / (time.monotonic() - half_at)
    control = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    print(json.dumps({"rate": rate, "congestion_control": control}), flush=True)


def send(to: str, total: int, nbytes: int) -> None:
    data = memoryview(bytearray(ROOM))
    with _connected(to) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(TRIPS):
            begin = time.monotonic()
            stream.sendall(data[:nbytes])
            _exactly(stream, nbytes)
            trips.append(time.monotonic() - begin)
        for at in range(0, total, ROOM):
            stream.sendall(data[: total - at])
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)
    print(json.dumps({"one_way": statistics.median(trips) / 2}), flush=True)


def _exactly(stream: socket.socket, nbytes: int) -> bytes:
    got = b""
    while len(got) < nbytes:
        got += stream.recv(nbytes - len(got))
    return got


def _connected(host: str) -> socket.socket:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, PORT), 5)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    {"receive": receive, "send": send}[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
