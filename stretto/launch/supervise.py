"""``run_agents``: N agents of one command on this machine, and the coordinator they meet at."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

from stretto.errors import UsageError
from stretto.launch.cluster import Cluster, Host
from stretto.launch.output import print_line
from stretto.launch.running import Run, Show
from stretto.launch.secret import new_secret
from stretto.links import addresses as places
from stretto.membership.rendezvous import Coordinator


def run_agents(
    command: Sequence[str],
    agents: int,
    *,
    first_rank: int = 0,
    size: int | None = None,
    coordinator: str | None = None,
    hosts_coordinator: bool = False,
    secret: str | None = None,
    link: str = "auto",
    interface: str | None = None,
    environ: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run ``command`` as agents ``first_rank`` … of ``size`` until all end: 0, or 130 after Ctrl-C (143: SIGTERM).

    Args:
        coordinator: address of the coordinator; none: one of our own, on this machine alone.
        hosts_coordinator: whether we are the ones to listen at that address.
        secret: what agents prove; none: a new one.
        environ: variables to set beside our own environment.
        on_line: gets every line that agents print, behind ``N| ``; none: they go to our standard output and error, and
            a single agent writes there itself.

    Raises:
        ScriptFailed: an agent failed; its traceback has been shown, and nothing is left running.
        UsageError: there is no such command, or the coordinator's port is in use.
    """
    size = agents + first_rank if size is None else size
    if agents < 1:
        raise UsageError(f"{agents} agents cannot run anything; ask for at least 1")
    if not command or shutil.which(command[0]) is None:
        raise UsageError(f"there is no program {command[0] if command else ''!r}; check the spelling, and PATH")
    if coordinator is not None and secret is None:
        raise UsageError(f"the agents need the secret of the coordinator at {coordinator}; give it")
    secret = secret or new_secret()
    show = _show(on_line)
    with contextlib.ExitStack() as stack:
        own = _own_coordinator(coordinator, hosts_coordinator, size, secret, show)
        if own is not None:
            stack.enter_context(own)
        address = coordinator or (own.address if own is not None else "")
        common = _environment(environ, address, size, secret, link, interface)
        run = stack.enter_context(Run(show, piped=agents > 1 or on_line is not None))
        for local in range(agents):
            rank = first_rank + local
            run.start(rank, command, common | {"STRETTO_RANK": str(rank), "STRETTO_LOCAL_RANK": str(local)})
        return run.until_the_end(lambda: own is not None and size > agents and own.present() > 0)


def _own_coordinator(address: str | None, hosts_it: bool, size: int, secret: str, show: Show) -> Coordinator | None:
    if address is None:
        return Coordinator(size, secret, "127.0.0.1")
    if not hosts_it:
        return None
    _, port = places.split(address)
    return Coordinator(size, secret, "", port, say=lambda line: show(f"stretto: {line}", True))


def run_host(
    command: Sequence[str],
    cluster: Cluster,
    host: Host,
    *,
    link: str = "auto",
    on_line: Callable[[str], None] | None = None,
) -> int:
    """Run one host's agents of a cluster; the first host has the coordinator. See :func:`run_agents`."""
    return run_agents(
        command,
        host.agents,
        first_rank=cluster.part(host.name).start,
        size=cluster.size,
        coordinator=cluster.coordinator,
        hosts_coordinator=host == cluster.hosts[0],
        secret=cluster.secret(),
        link=link,
        interface=host.interface,
        on_line=on_line,
    )


def _environment(
    extra: Mapping[str, str] | None, coordinator: str, size: int, secret: str, link: str, interface: str | None
) -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    ours = {
        "STRETTO_COORDINATOR": coordinator,
        "STRETTO_SIZE": str(size),
        "STRETTO_SECRET": secret,
        "STRETTO_LINK": link,
    }
    if interface is not None:
        ours["STRETTO_INTERFACE"] = interface
    return defaults | dict(os.environ) | dict(extra or {}) | ours


def _show(on_line: Callable[[str], None] | None) -> Show:
    if on_line is None:
        return print_line
    given = on_line
    return lambda line, error: given(line)
