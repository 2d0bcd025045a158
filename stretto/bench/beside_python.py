"""``stretto bench python``: an exchange while the training thread runs Python, and how soon a death is known then.

Decoding, tokenising and environments keep the interpreter lock. The loop here looks, every hundred microseconds or so,
whether the result has arrived: at samples of the tensor itself, one every 16 KB, the same way for all contenders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from stretto import strategies
from stretto.bench import team as teams
from stretto.bench.measure import ratio, spread, take_turns
from stretto.bench.peers import Gloo
from stretto.bench.report import Section, spread_text
from stretto.bench.team import Team, free_port
from stretto.courier import Courier
from stretto.errors import PeerLost, StrettoError

BUCKET: Final = 25 << 20
ROUNDS: Final = 20
GOAL: Final = 2.0
LINKS: Final = ("tcp", "shm")
GLOO: Final = "Gloo, asynchronous"
GRACE: Final = 0.1
"""Seconds of Python after a death, before anybody asks."""
DEATHS: Final = 3
_EVERY = 4096
_SPIN = 2_000

Begin = Callable[[Tensor], Callable[[], None]]


def run(command: str, say: Callable[[str], None]) -> Section:
    """Two agents, a bucket of 25 MiB."""
    cells: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for cell in teams.run(2, member, {"port": free_port()}, epochs=LINKS):
        for name in (*LINKS, GLOO):
            idle, busy = cell[f"{name}, idle"], cell[f"{name}, busy"]
            times = ratio(busy, idle)
            goal = ("2 times", "yes" if times.median <= GOAL else "no") if name != GLOO else ("", "")
            what = "25 MB bucket"
            cells.append(
                (what, name, spread_text(spread(idle, 1e3)), spread_text(spread(busy, 1e3)), spread_text(times), *goal)
            )
            data.append({"what": what, "who": name, "idle": idle, "busy": busy})
            say(f"{name}: {1e3 * spread(idle).median:.1f} ms idle, {1e3 * spread(busy).median:.1f} ms beside Python")
    for link in LINKS:
        late = [told for _ in range(DEATHS) for told in teams.run(2, mourner, {"link": link}, epochs=(link,))]
        what = f"a death, {1e3 * GRACE:.0f} ms of Python, then asked: waited"
        cells.append((what, link, "", spread_text(spread(late, 1e3)), "", "", ""))
        data.append({"what": what, "who": link, "late": late})
        say(f"{link}: a death was known {1e3 * max(late):.2f} ms after it was asked for, at worst")
    headers = ("what", "who", "idle, ms", "beside Python, ms", "times", "goal", "reached")
    about = (
        "2 agents. Beside Python: the thread that began the exchange runs a loop of arithmetic until the result is "
        f"there. A death: an agent and its courier are gone in the middle of an exchange; {DEATHS} times."
    )
    return Section(
        title="Exchange beside Python", command=command, about=about, headers=headers, cells=tuple(cells), data=data
    )


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does."""
    couriers = {link: team.courier(link, link) for link in LINKS}
    gloo = Gloo(team, ask["port"])
    begins: dict[str, Begin] = {name: _beginner(c, name) for name, c in couriers.items()} | {GLOO: gloo.begin}
    tensors = {name: c.allocate(BUCKET).view(torch.float32) for name, c in couriers.items()} | {
        GLOO: gloo.room(BUCKET // 4)
    }
    results = dict.fromkeys(LINKS, 0.5) | {GLOO: 1.0}

    def idle(name: str) -> None:
        begins[name](tensors[name])()

    def busy(name: str) -> None:
        samples = tensors[name].numpy()[::_EVERY]
        wait = begins[name](tensors[name])
        while not (samples == results[name]).all():
            python(_SPIN)
        wait()

    turns = {
        f"{name}, {how.__name__}": (lambda name=name, how=how: how(name)) for name in tensors for how in (idle, busy)
    }

    def refill(turn: str) -> None:
        tensors[turn.rpartition(",")[0]].fill_(float(team.rank))

    def check(turn: str) -> None:
        name = turn.rpartition(",")[0]
        if not bool((tensors[name] == results[name]).all()):
            raise StrettoError(f"{turn}: process {team.rank} has a wrong mean")

    team.tell(take_turns(team, turns, ROUNDS, refill, check))
    for courier in couriers.values():
        courier.close()
    gloo.close()


def mourner(team: Team, ask: dict[str, Any]) -> None:
    """The second process dies in an exchange, with its courier; the first is busy meanwhile, then asks."""
    courier = team.courier(ask["link"], ask["link"])
    x = courier.allocate(1 << 20).view(torch.float32)
    begin = _beginner(courier, ask["link"])
    begin(x)()
    team.barrier()
    if team.rank == 1:
        team.leave_at_once()
    wait = begin(x)
    until = time.perf_counter() + GRACE
    while time.perf_counter() < until:
        python(_SPIN)
    asked = time.perf_counter()
    try:
        wait()
    except PeerLost:
        team.tell(time.perf_counter() - asked)
    team.leave_at_once()


def python(turns: int) -> int:
    """Work of the interpreter's own: it never lets the lock go by itself."""
    x = 0
    for i in range(turns):
        x = (x * 31 + i) & 0xFFFF
    return x


def _beginner(courier: Courier, link: str) -> Begin:
    courier.use(0, str(strategies.allreduce()), native=link == "shm")
    step = 0

    def begin(x: Tensor) -> Callable[[], None]:
        nonlocal step
        step += 1
        return courier.mean(0, 0, step, x)

    return begin
