"""One agent of server_laboratory.py, on its host: ``server_laboratory_agent.py RANK ASK``. It pushes and pulls."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch
from laboratory_agent import SECRET, WARM_UP, cores

from stretto import strategies
from stretto.bench.pushing.ours import Pushes
from stretto.courier import Courier
from stretto.launch.environment import Identity
from stretto.launch.join import arrive
from stretto.links.addresses import split
from stretto.membership import Coordinator

_MOMENT = 0


def main(rank: int, ask: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    address = ask["coordinator"]
    coordinator = Coordinator(ask["size"], SECRET, "", split(address)[1]) if rank == 0 else None
    with coordinator or contextlib.nullcontext():
        courier = Courier(arrive(Identity(rank=rank, size=ask["size"]), "tcp", address, SECRET))
        courier.measure()
        print(json.dumps(rounds(courier, **ask)), flush=True)
        courier.close()
        while coordinator is not None and coordinator.present():
            time.sleep(0.02)


def rounds(
    courier: Courier, *, size: int, nbytes: int, rounds: int, strategy: str, ahead: float, **_: Any
) -> dict[str, Any]:
    """Pushes that begin together: ``ahead`` seconds after the mean of the moments at which agents were ready."""
    pushes = Pushes(courier, nbytes, strategy, lr=float(size) if strategy.startswith("asp") else 1.0)
    courier.use(_MOMENT, str(strategies.allreduce(topology="star")))
    moment = courier.allocate(8).view(torch.float64)

    def together() -> None:
        moment[0] = time.monotonic()
        courier.mean(_MOMENT, moment, moment)()
        time.sleep(max(0.0, float(moment[0]) + ahead - time.monotonic()))

    pushes.load()
    begins, ends = [], []
    busy = passed = sent = received = 0.0
    for _ in range(WARM_UP + rounds):
        together()
        counted, before = courier.counted(), cores()
        begins.append(time.monotonic())
        pushes.call()
        ends.append(time.monotonic())
        spent = [now - then for now, then in zip(cores(), before, strict=True)]
        busy, passed = busy + spent[0], passed + spent[1]
        together()  # what others did until the last had ended is counted
        after = courier.counted()
        sent, received = after.sent - counted.sent, after.received - counted.received
    together()
    pushes.call()
    together()
    return {
        "begins": begins[WARM_UP:],
        "ends": ends[WARM_UP:],
        "sent": sent,
        "received": received,
        "busy": busy / passed if passed else 0.0,
        "strategy": strategy,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
