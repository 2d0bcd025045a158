"""``stretto bench python``: an exchange while the training thread runs Python, and how soon a death is past then.

Decoding, tokenising and environments keep the interpreter lock. The loop here looks, every hundred microseconds or so,
whether the result has arrived: at samples of the tensor itself, one every 16 KB, the same way for all contenders.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from stretto import strategies
from stretto.bench import team as teams
from stretto.bench.measure import ratio, spread, take_turns
from stretto.bench.ours import rooms
from stretto.bench.peers import Gloo
from stretto.bench.report import Section, spread_text
from stretto.bench.team import Team, free_port
from stretto.courier import Courier
from stretto.errors import StrettoError

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

Begin = Callable[[Tensor, Tensor], Callable[[], object]]
"""Of a mean, from one tensor to another."""


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
        what = f"a death, {1e3 * GRACE:.0f} ms of Python, then the mean of who is left: waited"
        cells.append((what, link, "", spread_text(spread(late, 1e3)), "", "", ""))
        data.append({"what": what, "who": link, "late": late})
        say(f"{link}: after a death the mean of who is left was waited for {1e3 * max(late):.2f} ms, at worst")
    headers = ("what", "who", "idle, ms", "beside Python, ms", "times", "goal", "reached")
    about = (
        "2 agents. Beside Python: the thread that began the exchange runs a loop of arithmetic until the result is "
        f"there. A death: an agent is gone when the next exchange begins, and the other goes on alone; {DEATHS} times."
    )
    return Section(
        title="Exchange beside Python", command=command, about=about, headers=headers, cells=tuple(cells), data=data
    )


def member(team: Team, ask: dict[str, Any]) -> None:
    """What each process does."""
    couriers = {link: team.courier(link, link) for link in LINKS}
    gloo = Gloo(team, ask["port"])
    begins: dict[str, Begin] = {name: _beginner(c) for name, c in couriers.items()}
    begins[GLOO] = lambda x, _: gloo.begin(x)
    pairs = {name: rooms(c, BUCKET // 4) for name, c in couriers.items()}
    pairs[GLOO] = (x := gloo.room(BUCKET // 4), x)
    results = dict.fromkeys(LINKS, 0.5) | {GLOO: 1.0}

    def idle(name: str) -> None:
        begins[name](*pairs[name])()

    def busy(name: str) -> None:
        samples = pairs[name][1].numpy()[::_EVERY]
        wait = begins[name](*pairs[name])
        while not (samples == results[name]).all():
            python(_SPIN)
        wait()

    turns = {
        f"{name}, {how.__name__}": (lambda name=name, how=how: how(name)) for name in pairs for how in (idle, busy)
    }

    def refill(turn: str) -> None:
        for x in pairs[turn.rpartition(",")[0]]:
            x.fill_(float(team.rank))

    def check(turn: str) -> None:
        name = turn.rpartition(",")[0]
        if not bool((pairs[name][1] == results[name]).all()):
            raise StrettoError(f"{turn}: process {team.rank} has a wrong mean")

    team.tell(take_turns(team, turns, ROUNDS, refill, check))
    for courier in couriers.values():
        courier.close()
    gloo.close()


def mourner(team: Team, ask: dict[str, Any]) -> None:
    """The second process dies before an exchange; the first is busy meanwhile, then asks for the mean of itself."""
    courier = team.courier(ask["link"], ask["link"])
    x, mean = rooms(courier, 1 << 18)
    begin = _beginner(courier)
    begin(x.fill_(float(team.rank)), mean)()
    team.barrier()
    if team.rank == 1:
        team.leave_at_once()
    wait = begin(x.fill_(7.0), mean)
    until = time.perf_counter() + GRACE
    while time.perf_counter() < until:
        python(_SPIN)
    asked = time.perf_counter()
    wait()
    team.tell(time.perf_counter() - asked)
    if not bool((mean == 7.0).all()):
        raise StrettoError(f"{ask['link']}: a wrong mean after a death")
    team.leave_at_once()


def python(turns: int) -> int:
    """Work of the interpreter's own: it never lets the lock go by itself."""
    x = 0
    for i in range(turns):
        x = (x * 31 + i) & 0xFFFF
    return x


def _beginner(courier: Courier) -> Begin:
    courier.use(0, str(strategies.allreduce()), native=courier.apart)
    return lambda x, mean: courier.mean(0, x, mean)
