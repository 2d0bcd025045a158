"""``stretto bench allreduce``: one flat tensor, everybody's mean, by everyone in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from stretto.bench import team as teams
from stretto.bench.measure import Row, rows, take_turns
from stretto.bench.ours import BareTcp, ByCourier
from stretto.bench.peers import Gloo, OpenMpi
from stretto.bench.report import Section, compared
from stretto.bench.team import Team, free_port
from stretto.errors import StrettoError

SIZES: Final = {"4 KB": 4 << 10, "64 KB": 64 << 10, "1 MB": 1 << 20, "16 MB": 16 << 20, "100 MB": 100 << 20}
GLOO, MPI = "Gloo", "Open MPI"
_SMALL = 64 << 10
_SLICE = 1 << 18
_CLOSE = 1e-5


class Contender(Protocol):
    """Something that makes a mean, and says where it lies. ``adds``: it is the sum; we divide, outside the clock."""

    @property
    def adds(self) -> bool: ...
    def room(self, numel: int) -> Tensor: ...
    def mean(self, x: Tensor) -> Tensor: ...
    def close(self) -> None: ...


def run(
    agents: Sequence[int], links: Sequence[str], sizes: Sequence[str], command: str, say: Callable[[str], None]
) -> Section:
    """Measure; ``sizes`` are keys of :data:`SIZES`.

    Raises:
        ScriptFailed: a process of the benchmark failed, or a result was wrong.
    """
    no_mpi = teams.why_no_mpi()
    found: list[Row] = []
    topologies: dict[str, str] = {}
    for n in agents:
        ask = {"links": links, "sizes": sizes, "mpi": no_mpi is None, "port": free_port()}
        for cell in teams.run(n, member, ask, epochs=links, mpi=no_mpi is None):
            of_case = rows(n, cell["size"], cell["seconds"], (GLOO, MPI), goals(cell["size"]))
            found += of_case
            topologies[f"{n} agents, {cell['size']}"] = cell["topology"]
            say(f"{n} agents, {cell['size']}: " + ", ".join(f"{r.contender} {r.ms.median:.3f} ms" for r in of_case))
    about = (
        "`tcp` is the link in the calling thread, as Gloo and MPI are called; `through the courier` is what a trainer "
        "sees. Gloo and MPI only add, ours also divides."
    )
    if "tcp" in links:
        about += " `auto` took " + "; ".join(f"{t} for {case}" for case, t in topologies.items()) + "."
    if no_mpi:
        about += f" Open MPI is not in the table: {no_mpi}."
    return compared("All-reduce on one machine", command, about, found, (GLOO, MPI))


def goals(size: str) -> dict[str, dict[str, float]]:
    """The most that a time may be of another's, by contender."""
    small, large = SIZES[size] <= _SMALL, SIZES[size] >= SIZES["16 MB"]
    shm = {GLOO: 0.2} if small else {GLOO: 0.25, MPI: 0.5} if large else {}
    return {"tcp": {GLOO: 0.5 if small else 1.0}, "shm, through the courier": shm}


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does."""
    contenders: dict[str, Contender] = {f"{link}, through the courier": ByCourier(team, link) for link in ask["links"]}
    tcp = BareTcp(team) if "tcp" in ask["links"] else None
    if tcp is not None:
        contenders = {"tcp": tcp, **contenders}
    contenders[GLOO] = Gloo(team, ask["port"])
    if ask["mpi"]:
        contenders[MPI] = OpenMpi()
    for size in ask["sizes"]:
        seconds = _measure(team, contenders, SIZES[size])
        team.tell({"size": size, "seconds": seconds, "topology": tcp.topology(SIZES[size]) if tcp else ""})
    for contender in contenders.values():
        contender.close()


def _measure(team: Team, contenders: dict[str, Contender], nbytes: int) -> dict[str, list[float]]:
    given = [torch.randn(nbytes // 4, generator=torch.Generator().manual_seed(rank)) for rank in range(team.size)]
    mine, right = given[team.rank], torch.stack(given).double().mean(0).float()
    del given
    tensors = {name: c.room(nbytes // 4) for name, c in contenders.items()}
    means: dict[str, Tensor] = {}

    def refill(name: str) -> None:
        tensors[name].copy_(mine)

    def check(name: str) -> None:
        x = means.pop(name)
        if contenders[name].adds:
            x.div_(team.size)
        if (off := worst(x, right)) > _CLOSE:
            raise StrettoError(f"{name}: process {team.rank}'s mean of {nbytes} bytes is off by {off:.2g}")

    def turn(name: str) -> None:
        means[name] = contenders[name].mean(tensors[name])

    turns = {name: partial(turn, name) for name in contenders}
    return take_turns(team, turns, _rounds(nbytes), refill, check)


def worst(x: Tensor, y: Tensor) -> float:
    """The largest difference, in slices that stay in cache."""
    parts = zip(x.split(_SLICE), y.split(_SLICE), strict=True)
    return max(float(torch.linalg.vector_norm(a - b, float("inf"))) for a, b in parts)


def _rounds(nbytes: int) -> int:
    return 60 if nbytes <= _SMALL else 24 if nbytes < SIZES["100 MB"] else 10
