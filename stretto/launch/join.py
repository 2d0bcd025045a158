"""``stretto.join()``: from what the launcher left in the environment to an agent among the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch

from stretto.agent import Agent
from stretto.core import Epoch
from stretto.courier import Place
from stretto.errors import UnknownName, UsageError
from stretto.launch.environment import Identity, read
from stretto.links import addresses as places
from stretto.links.connect import listen_tcp, listen_unix
from stretto.links.memory import Arena, Board, member_address, open_board
from stretto.membership import Coordinator, Entry, enter

LINKS: Final = ("auto", "c10d", "shm", "tcp")
"""``auto`` is shared memory where all agents are on one machine, else TCP."""


def join(*, link: str | None = None, environ: Mapping[str, str] | None = None) -> Agent:
    """Enter the run that this process was started for; alone if it was started for none.

    Args:
        link: ``"tcp"``, ``"shm"``, ``"c10d"`` or ``"auto"``; without it what the launcher asked for.
        environ: instead of this process's environment.

    Raises:
        UsageError: the environment contradicts itself, or the link cannot be had here.
        NetworkError: the coordinator or the others cannot be reached.
    """
    identity = read(os.environ if environ is None else environ)
    link = link or identity.link or "auto"
    if link not in LINKS:
        raise UnknownName("link", link, LINKS)
    if identity.size == 1 or identity.coordinator is None or identity.secret is None:
        return Agent()
    coordinator = _host_coordinator(identity) if identity.hosts_coordinator else None
    try:
        return _enter(identity, link, identity.coordinator, identity.secret, coordinator)
    except BaseException:
        if coordinator is not None:
            coordinator.close()
        raise


def _host_coordinator(identity: Identity) -> Coordinator:
    assert identity.coordinator is not None and identity.secret is not None
    host, port = places.split(identity.coordinator)
    coordinator = Coordinator(identity.size, identity.secret, host if host == "127.0.0.1" else "", port)
    coordinator.start()
    return coordinator


def _enter(identity: Identity, link: str, address: str, secret: str, coordinator: Coordinator | None) -> Agent:
    place = arrive(identity, link, address, secret)
    return Agent(place, link=place.link, hosted=coordinator)


def arrive(identity: Identity, link: str, address: str, secret: str) -> Place:
    """Enter the epoch that the coordinator at ``address`` calls: all that a courier needs to know to serve there.

    Raises:
        UsageError: the link cannot be had here.
        NetworkError: the coordinator or the others cannot be reached.
    """
    tcp = listen_tcp()
    unix, unix_address = listen_unix()
    memory = Arena.create(Board.nbytes(identity.size))
    port = tcp.getsockname()[1]
    entry = enter(
        address,
        secret,
        identity.rank,
        identity.size,
        addresses=[
            unix_address,
            member_address(memory),
            *(places.join(ip, port) for ip in places.candidates(address, identity.interface)),
        ],
        host=places.machine_id(),
        pid=os.getpid(),
        say=_say,
    )
    chosen = choose(link, entry.epoch)
    _share_cores(entry)
    place = Place(entry.rank, entry.epoch, entry.network, secret, entry.sock, (tcp, unix), chosen, trace=identity.trace)
    if chosen == "shm":
        return replace(place, board=_board(entry, memory))
    memory.close()
    return place


def choose(link: str, epoch: Epoch) -> str:
    """The link that ``link`` means for these members.

    Raises:
        UsageError: shared memory was asked for and the agents are on several machines.
    """
    together = len(set(epoch.hosts)) == 1
    if link == "shm" and not together:
        hosts = _ranks_by_host(epoch)
        raise UsageError(
            f"link shm needs all agents on one machine; here they are on {len(hosts)}: {hosts}; use --link auto"
        )
    if link == "auto":
        return "shm" if together else "tcp"
    return link


def _ranks_by_host(epoch: Epoch) -> Sequence[list[int]]:
    return [[r for r, h in enumerate(epoch.hosts) if h == host] for host in sorted(set(epoch.hosts))]


def _share_cores(entry: Entry) -> None:
    """Agents that each compute with all cores of one machine are slower than one; only torchrun sees to that itself."""
    here = entry.epoch.hosts.count(entry.epoch.hosts[entry.rank])
    fair = max(1, len(os.sched_getaffinity(0)) // here)
    if here > 1 and torch.get_num_threads() > fair:
        if entry.rank == entry.epoch.hosts.index(entry.epoch.hosts[entry.rank]):
            _say(
                f"{here} agents share this machine, so each computes with {fair} of {torch.get_num_threads()} threads; "
                "call torch.set_num_threads after stretto.join() for another number"
            )
        torch.set_num_threads(fair)


def _board(entry: Entry, mine: Arena) -> Board:
    first = entry.epoch.members[0]
    return Board(mine if entry.rank == 0 else open_board(first, entry.epoch.size), entry.rank, entry.epoch.size)


def _say(line: str) -> None:
    print(f"stretto: {line}", file=sys.stderr, flush=True)
