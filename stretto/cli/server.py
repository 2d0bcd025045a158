"""``stretto server``: hold parameters for the agents of a run."""

from __future__ import annotations

import click


@click.command()
def server() -> None:
    """Hold parameters for the agents of a run, and train nothing, until all agents have left.

    `stretto run --servers` starts such processes, and a cluster.toml says where they are. To start one by hand, give it
    the environment that the agents have: STRETTO_COORDINATOR, STRETTO_SIZE (the number of agents) and STRETTO_SECRET;
    and a number of its own, from 0 on, as STRETTO_SERVER. STRETTO_SERVER_PORT is where agents reach it; without it, any
    port that is free. The first servers, as many as STRETTO_SERVERS says, are waited for; others may come at any time.
    """
    from stretto.launch.join import serve  # noqa: PLC0415  with torch, which other commands do without

    serve()
