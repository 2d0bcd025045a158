"""``run_agents``: N agents of one command on this machine, their servers, and the coordinator they meet at."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stretto.core import FIRST_SERVER
from stretto.errors import UsageError
from stretto.launch.cluster import Cluster, Machine
from stretto.launch.coordinator import Call, import_path
from stretto.launch.environment import addresses
from stretto.launch.hearing import Show
from stretto.launch.lives import Lives
from stretto.launch.output import print_line
from stretto.launch.running import NobodyLeft, Run
from stretto.launch.secret import new_secret
from stretto.links import addresses as places

_SERVE: Final = (sys.executable, "-P", "-m", "stretto.cli", "server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """How a launch goes on when agents die.

    ``restarts``: how often a killed agent is started again at most; None: always. ``min_agents``: that many may go on
    without a majority. ``checkpoint``: where the run is saved, every ``checkpoint_every`` seconds, and from where all
    begin again when no agent is left.
    """

    restarts: int | None = None
    min_agents: int | None = None
    checkpoint: str | None = None
    checkpoint_every: float | None = None

    def environment(self) -> dict[str, str]:
        """As agents read it."""
        values = {
            "STRETTO_MIN_AGENTS": self.min_agents,
            "STRETTO_CHECKPOINT": self.checkpoint,
            "STRETTO_CHECKPOINT_EVERY": self.checkpoint_every,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


USUAL: Final = Care()


def run_agents(
    command: Sequence[str],
    agents: int,
    *,
    servers: int = 0,
    first_rank: int = 0,
    size: int | None = None,
    posts: Mapping[int, int] | None = None,
    coordinator: str | None = None,
    hosts_coordinator: bool = False,
    secret: str | None = None,
    store: str | None = None,
    link: str = "auto",
    interface: str | None = None,
    care: Care = USUAL,
    environ: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run ``command`` as agents ``first_rank`` … of ``size`` until all end: 0, or 130 after Ctrl-C (143: SIGTERM).

    Args:
        servers: how many servers the run has.
        posts: those of them to be started here, each with its port (0: any that is free); by default all of them.
        coordinator: address of the coordinator, and behind commas where a successor would be; none: one of our own, on
            this machine alone.
        hosts_coordinator: whether we are the ones to listen at the first of them.
        secret: what agents prove; none: a new one.
        store: ZooKeeper or etcd, to decide who is in (:mod:`stretto.membership.stores`); none: agents vote.
        care: what to do when agents die.
        environ: variables to set beside our own environment.
        on_line: gets every line that agents print, behind ``N| ``; none: they go to our standard output and error, and
            an agent alone in its run writes there itself.

    Raises:
        ScriptFailed: an agent failed, or none is left; its traceback has been shown, and nothing is left running.
        UsageError: there is no such command, or the coordinator's port is in use.
    """
    size = agents + first_rank if size is None else size
    posts = dict.fromkeys(range(servers), 0) if posts is None else posts
    if agents < 0 or agents + len(posts) < 1:
        raise UsageError(f"{agents} agents cannot run anything; ask for at least 1")
    if servers < 0:
        raise UsageError(f"there cannot be {servers} servers; ask for 0 or more")
    if not command or shutil.which(command[0]) is None:
        raise UsageError(f"there is no program {command[0] if command else ''!r}; check the spelling, and PATH")
    if coordinator is not None and secret is None:
        raise UsageError(f"the agents need the secret of the coordinator at {coordinator}; give it")
    secret = secret or new_secret()
    show, piped, elsewhere = _show(on_line), size + servers > 1 or on_line is not None, size > agents
    beyond = servers > len(posts)

    def attempt() -> int:
        with Run(show, piped=piped, elsewhere=elsewhere, served_elsewhere=beyond, restarts=care.restarts) as run:
            address = store or coordinator or ""
            if coordinator is None or hosts_coordinator:
                own = run.coordinate(_call(coordinator, size, servers, secret, care, store or ""))
                address = address or own
            common = _environment(environ, address, size, servers, secret, link, interface, run.folder, care)
            for number, port in posts.items():
                mine = {"STRETTO_SERVER": str(number), "STRETTO_SERVER_PORT": str(port)}
                run.start(FIRST_SERVER + number, _SERVE, import_path(common | mine))
            for local in range(agents):
                rank = first_rank + local
                run.start(rank, command, common | {"STRETTO_RANK": str(rank), "STRETTO_LOCAL_RANK": str(local)})
            return run.until_the_end()

    return attempt() if care.checkpoint is None or elsewhere or beyond else _again_and_again(attempt, care, show)


def _again_and_again(attempt: Callable[[], int], care: Care, show: Show) -> int:
    """Where no agent is left that has the model, its checkpoint has it."""
    lives = Lives(care.restarts)
    while True:
        begin = time.monotonic()
        try:
            return attempt()
        except NobodyLeft as e:
            lives = lives.died(time.monotonic() - begin)
            if lives.why_no_more is not None:
                raise
            show(f"stretto: {e.what}; all are {lives}, to go on from the checkpoint {care.checkpoint}", True)
        time.sleep(lives.pause)


def run_host(
    command: Sequence[str],
    cluster: Cluster,
    machine: Machine,
    *,
    link: str = "auto",
    care: Care = USUAL,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run what belongs on one machine of a cluster; the first host has the coordinator. See :func:`run_agents`."""
    host = machine.host
    return run_agents(
        command,
        host.agents if host is not None else 0,
        servers=len(cluster.servers),
        first_rank=cluster.part(host.name).start if host is not None else 0,
        size=cluster.size,
        posts=machine.posts,
        coordinator=cluster.coordinators,
        hosts_coordinator=host == cluster.hosts[0],
        secret=cluster.secret(),
        link=link,
        interface=host.interface if host is not None else None,
        care=care,
        on_line=on_line,
    )


def _call(address: str | None, size: int, servers: int, secret: str, care: Care, store: str) -> Call:
    host, port = ("127.0.0.1", 0) if address is None else ("", places.split(addresses(address)[0])[1])
    return Call(
        size=size, secret=secret, host=host, port=port, servers=servers, min_agents=care.min_agents, store=store
    )


def _environment(
    extra: Mapping[str, str] | None,
    coordinator: str,
    size: int,
    servers: int,
    secret: str,
    link: str,
    interface: str | None,
    state: Path,
    care: Care,
) -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    ours = {
        "STRETTO_COORDINATOR": coordinator,
        "STRETTO_SIZE": str(size),
        "STRETTO_SECRET": secret,
        "STRETTO_LINK": link,
        "STRETTO_STATE": str(state),
        **care.environment(),
    }
    if servers:
        ours["STRETTO_SERVERS"] = str(servers)
    if interface is not None:
        ours["STRETTO_INTERFACE"] = interface
    return defaults | dict(os.environ) | dict(extra or {}) | ours


def _show(on_line: Callable[[str], None] | None) -> Show:
    if on_line is None:
        return print_line
    given = on_line
    return lambda line, error: given(line)
