"""Push plus pull: two agents and a server, a gradient there and the values back, by everyone in turn.

Both agents call at once, one call after the other; a turn is some calls. At the end of a size all that was pushed is
counted: every push of ones moves every value by one. Only then, while nobody pushes: most send values from where they
lie, and what another push changes meanwhile arrives as it happens to be, even half of a number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from torch import Tensor

from stretto.bench import team as teams
from stretto.bench.measure import Row, rows, take_turns
from stretto.bench.pushing import GRPC, PEERS, RAY, SOCKETS, ZMQ
from stretto.bench.pushing.contender import Contender
from stretto.bench.pushing.ours import Ours, epoch, serve_one
from stretto.bench.pushing.serving import serving
from stretto.bench.report import NOT_MEASURED, Section, judged, spread_text
from stretto.bench.team import Team
from stretto.errors import StrettoError

AGENTS: Final = 2
SIZES: Final = {"4 KB": 4 << 10, "64 KB": 64 << 10, "1.6 MB": 1_677_720, "16 MB": 16 << 20, "100 MB": 100 << 20}
CALLS: Final = {"4 KB": 50, "64 KB": 30, "1.6 MB": 6, "16 MB": 2, "100 MB": 1}
"""In a turn."""
ROUNDS: Final = {"4 KB": 40, "64 KB": 40, "1.6 MB": 30, "16 MB": 20, "100 MB": 10}
AGAINST: Final = (SOCKETS, GRPC, ZMQ, RAY)
TCP_MS: Final = 0.2
"""Of 4 KB, over tcp."""
AMONG: Final = ", agents hold"
"""Follows the link where no server is apart."""
_LARGE: Final = SIZES["1.6 MB"]


class Pushing:
    """A contender in one agent, and how often it has called with the tensors of this size."""

    def __init__(self, name: str, contender: Contender) -> None:
        self.name, self._contender = name, contender
        self._pair: tuple[Tensor, Tensor] | None = None
        self._made = 0

    def begin(self, nbytes: int) -> None:
        self._pair = None  # so that two sizes are never held
        self._pair, self._made = self._contender.room(nbytes), 0

    def turn(self, calls: int) -> None:
        assert self._pair is not None
        for _ in range(calls):
            self._contender.call(*self._pair)
        self._made += calls

    def audit(self, team: Team) -> None:
        """One agent after the other.

        Raises:
            StrettoError: a push was lost, or made twice.
        """
        assert self._pair is not None
        for rank in range(team.size):
            team.barrier()
            if rank == team.rank:
                self._contender.call(*self._pair)
                least, most = (-float(x) for x in reversed(self._pair[1].aminmax()))
                right = team.size * self._made + rank + 1
                if not least == most == right:
                    raise StrettoError(f"{self.name}: after {right} pushes values say {least:g} to {most:g}")

    def close(self) -> None:
        self._contender.close()


def run(
    links: Sequence[str], sizes: Sequence[str], command: str, say: Callable[[str], None], rounds: int | None = None
) -> Section:
    """Measure; ``sizes`` are keys of :data:`SIZES`; ``rounds`` in place of the usual ones.

    Raises:
        ScriptFailed: a process of the benchmark failed, or a result was wrong.
    """
    there = [peer for peer in PEERS.values() if peer.version is not None]
    found: list[Row] = []
    with contextlib.ExitStack() as stack:
        at = {peer.name: stack.enter_context(serving(peer.name, peer.serve, AGENTS)) for peer in there}
        ours = {
            link: {size: stack.enter_context(serving(f"{link}, {size}", serve_one, AGENTS)) for size in sizes}
            for link in links
        }
        ask = {"links": ours, "peers": at, "sizes": sizes, "rounds": rounds}
        epochs = [epoch(link, SIZES[size]) for link in links for size in sizes]
        for cell in stack.enter_context(contextlib.closing(teams.run(AGENTS, member, ask, epochs=epochs))):
            of_case = judged_rows(cell["size"], cell["seconds"])
            found += of_case
            say(f"{cell['size']}: " + ", ".join(f"{r.contender} {r.ms.median:.3f} ms" for r in of_case))
    return _section(found, command)


def judged_rows(size: str, seconds: Mapping[str, Sequence[float]]) -> list[Row]:
    """What a size's times are, with their goals."""
    most = {"tcp": TCP_MS} if size == "4 KB" else {}
    return rows(AGENTS, size, seconds, AGAINST, goals(size), CALLS[size], most)


def goals(size: str) -> dict[str, dict[str, float]]:
    """The most that a time may be of another's, by contender."""
    if SIZES[size] < SIZES["64 KB"]:
        return {}
    others = dict.fromkeys((GRPC, ZMQ, RAY), 1.0) if SIZES[size] >= _LARGE else {}
    shm = {"shm": {SOCKETS: 0.5} | others} if SIZES[size] >= _LARGE else {}
    return {"tcp": {SOCKETS: 1 / 0.8} | others} | shm


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each agent does."""
    nbytes = [SIZES[size] for size in ask["sizes"]]
    contenders = []
    for link, served in ask["links"].items():
        at = {SIZES[size]: address for size, address in served.items()}
        contenders += [Pushing(link, Ours(team, link, nbytes, at)), Pushing(link + AMONG, Ours(team, link, nbytes))]
    contenders += [Pushing(name, PEERS[name].client(at, team.rank, AGENTS)) for name, at in ask["peers"].items()]
    for size in ask["sizes"]:
        for contender in contenders:
            contender.begin(SIZES[size])
        turns = {c.name: partial(c.turn, CALLS[size]) for c in contenders}
        seconds = take_turns(team, turns, ask["rounds"] or ROUNDS[size])
        for contender in contenders:
            contender.audit(team)
        team.tell({"size": size, "seconds": seconds})
    for contender in contenders:
        contender.close()


def rate(row: Row) -> float:
    """GB/s of all agents together, in both directions."""
    return 2 * AGENTS * SIZES[row.case] / row.ms.median / 1e6


def _section(found: Sequence[Row], command: str) -> Section:
    headers = ("size", "who", "ms (quartiles)", "GB/s", *(f"/ {name}" for name in AGAINST), "goal", "reached")
    missing = [peer.name for peer in PEERS.values() if peer.version is None]
    absent = [("", name, "not installed", *[NOT_MEASURED] * (len(headers) - 5), "", "") for name in missing]
    about = (
        f"{AGENTS} agents and one dedicated server on loopback. Milliseconds of a call of either, while both call; "
        "GB/s of both, in both directions. All servers do the same work: add the gradient with torch, send the values "
        "from where they lie; at the agents they end in a tensor. Ours is named by its link, and holds one copy; where "
        "the agents hold the values, each has half of them, and no server is apart."
    )
    versions = (f"{peer.name} {peer.version}" for peer in PEERS.values() if peer.version)
    about += " " + ", ".join(versions) + "."
    if missing:
        about += " Not installed here: " + ", ".join(missing) + "; `pip install 'stretto[peers]'`."
    return Section(
        title="Push and pull",
        command=command,
        about=about,
        headers=headers,
        cells=(*(_cells(row) for row in found), *absent),
        data=list(found),
    )


def _cells(row: Row) -> tuple[str, ...]:
    ratios = (spread_text(row.ratios[name]) if name in row.ratios else NOT_MEASURED for name in AGAINST)
    return (row.case, row.contender, spread_text(row.ms), f"{rate(row):.2f}", *ratios, *judged(row))
