"""One agent of laboratory.py, on its host: ``laboratory_agent.py RANK ASK``. Prints when its rounds began and ended."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import psutil
import torch

from stretto import strategies
from stretto.courier import Courier
from stretto.launch.environment import Identity
from stretto.launch.join import arrive
from stretto.links.addresses import split
from stretto.membership import Coordinator

SECRET = "what a laboratory sends is no secret"
WARM_UP = 2
_MEASURED, _MOMENT = 0, 1


def main(rank: int, ask: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    address = ask["coordinator"]
    coordinator = Coordinator(ask["size"], SECRET, "", split(address)[1]) if rank == 0 else None
    with coordinator or contextlib.nullcontext():
        courier = Courier(arrive(Identity(rank=rank, size=ask["size"]), "tcp", address, SECRET))
        courier.measure()
        print(json.dumps(rounds(courier, rank, **ask)), flush=True)
        courier.close()
        while coordinator is not None and coordinator.present():
            time.sleep(0.02)


def rounds(
    courier: Courier, rank: int, *, size: int, nbytes: int, rounds: int, topology: str, ahead: float, **_: Any
) -> dict[str, Any]:
    """All-reduces that begin together: ``ahead`` seconds after the mean of the moments at which agents were ready."""
    courier.use(_MEASURED, str(strategies.allreduce(topology=topology)))
    courier.use(_MOMENT, str(strategies.allreduce(topology="star")))
    x, moment = courier.allocate(nbytes).view(torch.float32), courier.allocate(8).view(torch.float64)
    begins, ends = [], []
    cpu = busy = passed = 0.0
    for number in range(WARM_UP + rounds):
        if number == WARM_UP:
            cpu = courier.counted().cpu_seconds
        x.fill_(float(rank))
        moment[0] = time.monotonic()
        courier.mean(_MOMENT, moment, moment)()
        time.sleep(max(0.0, float(moment[0]) + ahead - time.monotonic()))
        before = cores()
        begins.append(time.monotonic())
        courier.mean(_MEASURED, x, x)()
        ends.append(time.monotonic())
        spent = [now - then for now, then in zip(cores(), before, strict=True)]
        busy, passed = busy + spent[0], passed + spent[1]
        if not torch.all(x == (size - 1) / 2):
            sys.exit(f"agent {rank}: a wrong mean")
    cpu = (courier.counted().cpu_seconds - cpu) / rounds
    return {"begins": begins[WARM_UP:], "ends": ends[WARM_UP:], "cpu": cpu, "busy": busy / passed if passed else 0.0}


def cores() -> tuple[float, float]:
    """Seconds that this machine's cores have been busy, and that have passed for them."""
    times = psutil.cpu_times()
    idle = times.idle + times.iowait
    return sum(times[:8]) - idle, sum(times[:8])


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
