"""``stretto.join()``: from what the launcher left in the environment to an agent, or a server, among the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import torch

from stretto import courier
from stretto.agent import Agent
from stretto.checkpoint import Keep
from stretto.core import FIRST_SERVER, Epoch
from stretto.courier import Place
from stretto.errors import UnknownName, UsageError
from stretto.launch.coordinator import Lifeline, start_coordinator
from stretto.launch.environment import LINKS, Identity, read, read_server
from stretto.links import addresses as places
from stretto.links.connect import listen_tcp, listen_unix
from stretto.membership import Entry, enter, kept
from stretto.membership.stores import parse
from stretto.saving import EVERY, Saver
from stretto.session import epoch_of


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
    saver = _saver(identity)
    alone = identity.size == 1 and not identity.servers
    if alone or identity.coordinator is None or identity.secret is None:
        return Agent(saver=saver)
    lifeline = _host_coordinator(identity) if identity.hosts_coordinator else None
    try:
        place = arrive(identity, link, identity.coordinator, identity.secret)
    except BaseException:
        if lifeline is not None:
            lifeline.close()
        raise
    return Agent(place, saver=saver, left=lifeline.dismiss if lifeline is not None else lambda: None)


def serve(*, environ: Mapping[str, str] | None = None) -> None:
    """Be a server of the run that this process was started for; returns when all agents have left, or at SIGTERM.

    Args:
        environ: instead of this process's environment.

    Raises:
        UsageError: the environment contradicts itself, or the port is in use.
        NetworkError: the coordinator cannot be reached, or no agent has been there for long.
    """
    identity = read_server(os.environ if environ is None else environ)
    assert identity.coordinator is not None and identity.secret is not None
    courier.serve(arrive(identity, "tcp", identity.coordinator, identity.secret))


def _saver(identity: Identity) -> Saver | None:
    if identity.checkpoint is None:
        return None
    return Saver(identity.checkpoint, identity.checkpoint_every or EVERY, Keep(), _say)


def _host_coordinator(identity: Identity) -> Lifeline:
    assert identity.coordinator is not None and identity.secret is not None
    host, port = places.split(identity.coordinator.split(",", 1)[0])
    return start_coordinator(
        identity.size,
        identity.secret,
        host if host == "127.0.0.1" else "",
        port,
        servers=identity.servers,
        min_agents=identity.min_agents,
    )


def arrive(identity: Identity, link: str, address: str, secret: str) -> Place:
    """Enter the run that the coordinator at ``address`` calls: all that a courier needs to know to serve there.

    Raises:
        UsageError: the link cannot be had here.
        NetworkError: the coordinator or the others cannot be reached.
    """
    tcp, control = listen_tcp(port=identity.port), listen_tcp()
    unix, unix_address = listen_unix()
    store = address if "://" in address else ""
    toward = places.join(*parse(store).servers[0]) if store else address.split(",", maxsplit=1)[0]
    ips = places.candidates(toward, identity.interface)
    label = None if identity.rank is None else identity.rank + FIRST_SERVER * identity.serves
    entry = enter(
        address,
        secret,
        identity.rank,
        identity.size,
        addresses=(unix_address, *(places.join(ip, tcp.getsockname()[1]) for ip in ips)),
        control=[places.join(ip, control.getsockname()[1]) for ip in ips],
        host=places.machine_id(),
        pid=os.getpid(),
        serves=identity.serves,
        vote=kept(identity.state, label),
        say=_say,
    )
    epoch = epoch_of(entry.view)
    if not identity.serves:
        _share_cores(entry, epoch.agents)
    return Place(
        entry.seat,
        entry.view,
        secret,
        entry.sock,
        entry.head,
        (tcp, unix),
        control,
        choose(link, epoch),
        doors=() if store else tuple(address.split(",")),
        store=store,
        min_agents=identity.min_agents,
        state=identity.state,
        trace=identity.trace,
    )


def choose(link: str, epoch: Epoch) -> str:
    """The link that ``link`` means for these members. Where agents share memory, servers are reached over tcp.

    Raises:
        UsageError: shared memory was asked for and the agents are on several machines; or a link without servers.
    """
    if link == "c10d" and epoch.agents.size < epoch.size:
        raise UsageError("link c10d has no place for servers; use --link tcp, or run without servers")
    epoch = epoch.agents
    together = len(set(epoch.hosts)) == 1
    if link == "shm" and not together:
        hosts = _labels_by_host(epoch)
        raise UsageError(
            f"link shm needs all agents on one machine; here they are on {len(hosts)}: {hosts}; use --link auto"
        )
    if link == "auto":
        return "shm" if together else "tcp"
    return link


def _labels_by_host(epoch: Epoch) -> Sequence[list[int]]:
    return [[m.label for m in epoch.members if m.host == host] for host in sorted({m.host for m in epoch.members})]


def _share_cores(entry: Entry, epoch: Epoch) -> None:
    """Agents that each compute with all cores of one machine are slower than one; only torchrun sees to that itself."""
    mine = entry.seat
    here = [m.uid for m in epoch.members if m.host == mine.host and m.uid != mine.uid]
    fair = max(1, len(os.sched_getaffinity(0)) // (len(here) + 1))
    if here and torch.get_num_threads() > fair:
        if not any(m.host == mine.host and m.label < mine.label for m in epoch.members):
            _say(
                f"{len(here) + 1} agents share this machine, so each computes with {fair} of "
                f"{torch.get_num_threads()} threads; call torch.set_num_threads after stretto.join() for another number"
            )
        torch.set_num_threads(fair)


def _say(line: str) -> None:
    print(f"stretto: {line}", file=sys.stderr, flush=True)
