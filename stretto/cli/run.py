"""``stretto run SCRIPT``: your own script in several agents."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from stretto.cli import options, output
from stretto.errors import UsageError
from stretto.launch.cluster import read_cluster
from stretto.launch.supervise import run_agents, run_host

DEFAULT_AGENTS = 4


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--agents", "-n", type=int, help="How many agents to start here. [default: 4, or what the cluster says]")
@options.servers
@options.link
@click.option(
    "--cluster", metavar="FILE", help="A cluster.toml: run this on each of its machines, each starts its part."
)
@click.option("--host", metavar="NAME", help="Which machine of the cluster this is. [default: found by its address]")
@click.option(
    "--coordinator",
    metavar="ADDRESS",
    help="A store that decides who is in, where your cluster has one: zk://HOST:PORT/PATH or etcd://HOST:PORT/PATH.",
)
@options.care
@options.json
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    agents: int | None,
    servers: int,
    link: str,
    cluster: str | None,
    host: str | None,
    coordinator: str | None,
    json: str | None,
    script: str,
    arguments: tuple[str, ...],
    **care: Any,
) -> None:
    """Run SCRIPT with its ARGUMENTS in several agents, and exit as it does. Options of stretto go before SCRIPT."""
    output.check_json(json)
    options.check_link(link)
    options.check_servers(servers, link)
    if not Path(script).is_file():
        raise UsageError(f"there is no script {script}; options for stretto go before it, its own after it")
    on_line = output.printer(output.console(json)) if json == "-" else None
    command = [sys.executable, script, *arguments]
    begin = time.monotonic()
    if cluster is None:
        if host is not None:
            raise UsageError("--host names a machine of a cluster; give --cluster FILE too")
        size = DEFAULT_AGENTS if agents is None else agents
        options.check_agents(size)
        code = run_agents(
            command,
            size,
            servers=servers,
            store=coordinator,
            link=link,
            care=options.careful(size, **care),
            on_line=on_line,
        )
    else:
        if coordinator is not None:
            raise UsageError(f"{cluster} says where the coordinator is; leave --coordinator out")
        if agents is not None:
            raise UsageError(f"{cluster} says how many agents each machine has; leave --agents out")
        if servers:
            raise UsageError(f"{cluster} says where the servers are, in its [server] table; leave --servers out")
        machines = read_cluster(Path(cluster))
        size, servers = machines.size, len(machines.servers)
        options.check_servers(servers, link)
        code = run_host(
            command,
            machines,
            machines.machine(host) if host else machines.which(),
            link=link,
            care=options.careful(size, **care),
            on_line=on_line,
        )
    took = time.monotonic() - begin
    output.write_json(json, {"script": script, "agents": size, "servers": servers, "exit_code": code, "seconds": took})
    sys.exit(code)
