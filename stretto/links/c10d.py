"""Links over torch.distributed: its Gloo backend carries the frames, and its all-reduce is the native one.

For fleets where only torch.distributed gets through. Its rendezvous and its traffic are neither authenticated nor
encrypted (PyTorch's SECURITY.md): use it on networks that you trust. Sending and receiving block, so each peer has two
threads; messages are copied once more than on our own streams.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from stretto.core import Epoch
from stretto.errors import PeerLost
from stretto.links.addresses import is_loopback, split
from stretto.links.channel import StreamLink
from stretto.links.loop import Loop, Waiter
from stretto.links.mesh import Mesh
from stretto.links.stream import Peer

_FOREVER: Final = timedelta(days=30)
"""Gloo wants a timeout; deaths are noticed by connections instead."""
_GOODBYE: Final = 0
_WORD, _WORDS = 0.05, 40

Lost: TypeAlias = Callable[[int, str, bool], None]
Gloo: TypeAlias = Any
"""A ``ProcessGroupGloo`` or a store: torch gives no types for them."""


class Groups:
    """Two Gloo groups of all agents: one for messages, one for all-reduces, so that neither waits for the other."""

    def __init__(self, rank: int, epoch: Epoch, listener: int) -> None:
        host, port = store_address(epoch)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            epoch.size,
            is_master=rank == 0,
            wait_for_workers=False,
            master_listen_fd=os.dup(listener) if rank == 0 else None,
        )
        mine = "127.0.0.1" if len(set(epoch.hosts)) == 1 else outer_addresses(epoch, rank)[0][0]
        self.messages = _group(dist.PrefixStore("messages", store), rank, epoch.size, mine)  # type: ignore[attr-defined]
        self.sums = _group(dist.PrefixStore("sums", store), rank, epoch.size, mine)  # type: ignore[attr-defined]
        self.store = store


def outer_addresses(epoch: Epoch, rank: int) -> list[tuple[str, int]]:
    """An agent's (host, port) pairs, those that other machines reach first."""
    tcp = [split(a) for a in epoch.members[rank].addresses if not a.startswith(("unix:", "memory:"))]
    return sorted(tcp, key=lambda a: is_loopback(a[0]))


def store_address(epoch: Epoch) -> tuple[str, int]:
    """Where agent 0's store listens."""
    host, port = outer_addresses(epoch, 0)[0]
    return ("127.0.0.1", port) if len(set(epoch.hosts)) == 1 else (host, port)


def _group(store: Gloo, rank: int, size: int, ip: str) -> Gloo:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=ip)]
    options._timeout = _FOREVER
    return gloo(store, rank, size, options)


class GroupMesh(Mesh):
    """A mesh whose peers are the ranks of a process group; nobody is dialled."""

    def __init__(
        self, loop: Loop, rank: int, epoch: Epoch, groups: Groups, lost: Lost = lambda uid, why, left: None
    ) -> None:
        super().__init__(loop, rank, epoch, lambda uid: None, lost)
        self.groups = groups
        self.link_type = GroupLink
        self._sums: queue.SimpleQueue[tuple[Tensor, float, Waiter]] = queue.SimpleQueue()
        threading.Thread(target=self._sum, daemon=True).start()
        for uid in epoch.uids:
            if uid != epoch.uids[rank]:
                self.reach(uid)

    def _meet(self, uid: int) -> Peer:
        return GroupPeer(self, uid, self.groups.messages)

    def all_reduce(self, x: Tensor, scale: float) -> Waiter:
        """In the order of calls, which is the same at all agents."""
        done = Waiter()
        self._sums.put((x, scale, done))
        return done

    def _sum(self) -> None:
        while True:
            x, scale, done = self._sums.get()
            try:
                self.groups.sums.allreduce([x]).wait()
                x.mul_(scale)
            except RuntimeError as e:
                self.loop.call(_later(self.loop.spawn, self._fail(done, str(e))))
                return
            self.loop.call(done.complete)

    async def _fail(self, done: Waiter, why: str) -> None:
        """Gloo does not say who left; the coordinator, or a connection that ends, soon does."""
        for _ in range(_WORDS):
            if self._lost:
                break
            await self.loop.sleep(_WORD)
        nobody = PeerLost(f"{self.name} was in an all-reduce when another agent left; Gloo says: {why}")
        done.complete(error=next(iter(self._lost.values()), nobody))


class GroupLink(StreamLink):
    """A link whose all-reduce is the backend's own; a :class:`stretto.core.Native`."""

    mesh: GroupMesh

    def all_reduce(self, x: Tensor, scale: float) -> Waiter:
        return self.mesh.all_reduce(x, scale)


class GroupPeer(Peer):
    """One rank of the group: a thread that sends, and one that receives."""

    def __init__(self, mesh: GroupMesh, peer: int, group: Gloo) -> None:
        super().__init__(mesh, peer)
        self._rank = mesh.ranks[peer]
        self._group = group
        self._out: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._open = True
        for work in (self._send, self._receive):
            threading.Thread(target=work, daemon=True).start()

    @property
    def is_open(self) -> bool:
        return self._open

    def queue(self, views: list[memoryview], channel: StreamLink | None) -> None:
        data = b"".join(views)
        self.sent += len(data)
        self._out.put(data)
        if channel is not None:
            channel.unsent += len(views)
            for _ in views:
                self.mesh.loop.call(channel.left)

    def goodbye(self) -> None:
        self._out.put(b"")

    def wire_bytes(self) -> tuple[int, int]:
        return 0, 0

    def close(self, error: PeerLost | None = None) -> None:
        until = time.monotonic() + _WORD * _WORDS
        while error is None and self._open and not self._out.empty() and time.monotonic() < until:
            time.sleep(0.001)  # what is queued still goes, as a socket's buffer does
        self._open = False
        super().close(error)

    def _send(self) -> None:
        try:
            while self._open:
                data = self._out.get()
                self._group.send([torch.tensor([len(data)])], self._rank, 0).wait()
                if not data:
                    return
                self._group.send([torch.frombuffer(bytearray(data), dtype=torch.uint8)], self._rank, 0).wait()
        except RuntimeError as e:
            self.mesh.loop.call(_later(self.mesh.lose, self.peer, f"sending to it failed: {e}"))

    def _receive(self) -> None:
        length = torch.zeros(1, dtype=torch.int64)
        try:
            while self._open:
                self._group.recv([length], self._rank, 0).wait()
                if int(length) == _GOODBYE:
                    self.said_goodbye = True
                    self.mesh.loop.call(self.ended)
                    return
                data = torch.empty(int(length), dtype=torch.uint8)
                self._group.recv([data], self._rank, 0).wait()
                self.mesh.loop.call(_later(self._feed, data))
        except RuntimeError:
            self.mesh.loop.call(self.ended)

    def _feed(self, data: Tensor) -> None:
        self.received += len(data)
        left = data.numpy().data
        while left:
            space = self.reader.space()
            count = min(len(space), len(left))
            space[:count] = left[:count]
            left = left[count:]
            for frame, body in self.reader.advance(count):
                self.take(frame, body)


def _later(function: Callable[..., object], *args: object) -> Callable[[], object]:
    return lambda: function(*args)
