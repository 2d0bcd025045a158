"""``stretto bench scale``: what one agent pays as agents are added: time, connections and bytes, by topology.

On this machine all agents share its cores, so that time grows with their number whatever they do; it is given per
exchange and also per agent. In the simulator every agent has a machine of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from stretto.bench import team as teams
from stretto.bench.measure import spread, take_turns
from stretto.bench.report import NOT_MEASURED, Section, number, spread_text
from stretto.bench.team import Team
from stretto.core import Link, Topology
from stretto.exchanges import AllReduce
from stretto.sim import SimNetwork, World
from stretto.text import parse

TOPOLOGIES: Final = ("ring", "tree", "double_tree", "butterfly", "star")
NUMEL: Final = 4096
ROUNDS: Final = 20
SIMULATED: Final = (8, 64, 256, 1024)
NETWORK: Final = SimNetwork(delay=100e-6, rate=125e6)
_MOST_MESSAGES = 400_000


def run(agents: Sequence[int], command: str, say: Callable[[str], None]) -> Section:
    """A tensor of 16 KB; links are tcp. Simulated: 100 µs of delay, 1 Gbit/s."""
    cells: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for n in agents:
        for cell in teams.run(n, member, {}, epochs=TOPOLOGIES):
            ms = spread(cell["seconds"], 1e3)
            cells.append(
                (
                    "here",
                    str(n),
                    cell["topology"],
                    spread_text(ms),
                    number(ms.median / n),
                    f"{cell['connections']:.0f}",
                    f"{cell['connections_mean']:.1f}",
                    number(cell["bytes"] / 1e3),
                )
            )
            data.append({"agents": n, **cell})
            say(f"{n} agents, {cell['topology']}: {ms.median:.2f} ms, at most {cell['connections']:.0f} connections")
    for n in SIMULATED:
        for topology in TOPOLOGIES:
            seconds = simulate(n, topology)
            if seconds is None:
                continue
            cells.append(("simulated", str(n), topology, number(1e3 * seconds), *(NOT_MEASURED,) * 4))
            data.append({"agents": n, "topology": topology, "simulated": seconds})
            say(f"{n} agents simulated, {topology}: {1e3 * seconds:.2f} ms")
    headers = (
        "where",
        "agents",
        "topology",
        "ms",
        "ms / agents",
        "connections, most",
        "mean",
        "KB sent by an agent, mean",
    )
    about = (
        f"All-reduce of {NUMEL * 4 >> 10} KB over tcp. Here all agents share the cores: compare ms / agents. "
        "Connections are of one agent, with the at most 5 (two neighbours, and a binary tree) that measuring the "
        "network needs. Simulated with 0.1 ms of delay and 1 Gbit/s an agent."
    )
    return Section(
        title="Cost of an agent", command=command, about=about, headers=headers, cells=tuple(cells), data=data
    )


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does: a courier a topology, so that connections are that topology's own."""
    for topology in TOPOLOGIES:
        courier = team.courier(topology, "tcp")
        before = courier.counted()
        courier.use(0, f"allreduce(topology={topology})", native=False)
        x = courier.allocate(4 * NUMEL).view(torch.float32)
        exchanges = 0

        def exchange(x: Tensor = x) -> None:
            nonlocal exchanges
            exchanges += 1
            courier.mean(0, x, x)()  # noqa: B023

        seconds = take_turns(team, {topology: exchange}, ROUNDS)[topology]
        after = courier.counted()
        everyone = team.gather((float(after.connections), (after.sent - before.sent) / exchanges))
        connections, sent = zip(*everyone, strict=True)
        team.tell(
            {
                "topology": topology,
                "seconds": seconds,
                "connections": max(connections),
                "connections_mean": sum(connections) / team.size,
                "bytes": sum(sent) / team.size,
            }
        )
        courier.close()


def simulate(agents: int, topology: str) -> float | None:
    """Virtual seconds of one all-reduce; None where it would take minutes to simulate."""
    chosen: Topology = parse(topology, "topology")
    if topology == "ring" and agents * agents > _MOST_MESSAGES:
        return None
    exchange = AllReduce(chosen)

    async def reduce(link: Link) -> float:
        await exchange.reduce(link, torch.zeros(NUMEL))
        return link.now()

    seconds: float = max(World(agents, network=NETWORK).run(reduce))
    return seconds
