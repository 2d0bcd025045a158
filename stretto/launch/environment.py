"""Who this process is, from what its launcher left in the environment: ``stretto run``, torchrun, SLURM, or alone.

Nothing below this package reads the environment: everything arrives as a value.

Only ``stretto run`` starts a killed agent again while the others go on. torchrun ends all its workers when one dies,
and starts all of them again (``--max-restarts``): they go on from their last checkpoint (``STRETTO_CHECKPOINT``). Under
SLURM the others go on without the dead one where srun lets them: ``srun --no-kill --kill-on-bad-exit=0 --wait=0``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from stretto.errors import UsageError
from stretto.launch.secret import HOW, checked, job_secret, secret_in
from stretto.links import addresses as places
from stretto.membership.stores import parse

LINKS: Final = ("auto", "c10d", "shm", "tcp")
"""``auto`` is shared memory where all agents are on one machine, else TCP."""

_SLURM_PORTS: Final = range(15000, 30000)
"""Below the ports that Linux lends to outgoing connections (from 32768)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything an agent needs to know to enter. ``rank`` is None where the coordinator numbers the agents.

    One that ``serves`` is a server, and its ``rank`` is its number among the run's ``servers``; ``port``: where it is
    reached, 0 for any. ``size`` counts agents.
    ``coordinator`` may be several addresses between commas. ``state`` is a folder for what outlives a process of ours.
    ``min_agents`` may go on without a majority. The run is saved at ``checkpoint`` every ``checkpoint_every`` seconds.
    """

    rank: int | None = 0
    size: int = 1
    servers: int = 0
    serves: bool = False
    port: int = 0
    local_rank: int = 0
    coordinator: str | None = None
    hosts_coordinator: bool = False
    secret: str | None = None
    launcher: Literal["stretto", "torchrun", "slurm", "alone"] = "alone"
    link: str | None = None
    interface: str | None = None
    trace: Path | None = None
    state: Path | None = None
    min_agents: int | None = None
    checkpoint: str | None = None
    checkpoint_every: float | None = None


def read(environ: Mapping[str, str]) -> Identity:
    """The identity that the environment describes; rank 0 of 1 where it describes none.

    Raises:
        UsageError: variables are missing or contradict each other, or there is no secret between machines.
    """
    common = _common(environ)
    for described, identity in (
        (("STRETTO_COORDINATOR", "STRETTO_RANK", "STRETTO_SIZE"), _of_stretto),
        (("TORCHELASTIC_RUN_ID",), _of_torchrun),
        (("SLURM_PROCID", "SLURM_NTASKS"), _of_slurm),
    ):
        if any(environ.get(name) for name in described):
            return _checked(replace(identity(environ), **common))
    if all(environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return _checked(replace(_of_torchrun(environ), **common))
    return Identity(**common)


def read_server(environ: Mapping[str, str]) -> Identity:
    """The identity of a server, from the words that agents read, and STRETTO_SERVER, its number.

    Raises:
        UsageError: variables are missing or contradict each other.
    """
    if not environ.get("STRETTO_COORDINATOR"):
        raise UsageError(
            "a server needs to know its run: set STRETTO_COORDINATOR=HOST:PORT, STRETTO_SIZE, the number of agents, "
            "and STRETTO_SECRET as the agents have them; or let stretto run --servers start it"
        )
    identity = replace(_of_stretto(environ, "STRETTO_SERVER"), **_common(environ), serves=True)
    port = _number(environ, "STRETTO_SERVER_PORT") if environ.get("STRETTO_SERVER_PORT") else 0
    if port >= 1 << 16:
        raise UsageError(f"STRETTO_SERVER_PORT={port} is not a port; give 1024 to 65535, or leave it out")
    return _checked(replace(identity, port=port))


def addresses(text: str) -> list[str]:
    """The addresses between commas, each checked; or the one of a store.

    Raises:
        UsageError: one of them is no ``host:port``.
    """
    if "://" in text:
        parse(text)
        return [text]
    found = [address.strip() for address in text.split(",")]
    for address in found:
        places.split(address)
    return found


def _common(env: Mapping[str, str]) -> dict[str, Any]:
    """What is said in the same words whoever the launcher is."""
    return {
        "link": env.get("STRETTO_LINK"),
        "interface": env.get("STRETTO_INTERFACE"),
        "trace": _path(env, "STRETTO_TRACE"),
        "state": _path(env, "STRETTO_STATE"),
        "min_agents": _number(env, "STRETTO_MIN_AGENTS") if env.get("STRETTO_MIN_AGENTS") else None,
        "servers": _number(env, "STRETTO_SERVERS") if env.get("STRETTO_SERVERS") else 0,
        "checkpoint": env.get("STRETTO_CHECKPOINT") or None,
        "checkpoint_every": _seconds(env, "STRETTO_CHECKPOINT_EVERY"),
    }


def _of_stretto(env: Mapping[str, str], rank: str = "STRETTO_RANK") -> Identity:
    return Identity(
        rank=_number(env, rank) if env.get(rank) else None,
        size=_number(env, "STRETTO_SIZE"),
        local_rank=_number(env, "STRETTO_LOCAL_RANK") if env.get("STRETTO_LOCAL_RANK") else 0,
        coordinator=",".join(addresses(_text(env, "STRETTO_COORDINATOR"))),
        secret=_secret(env, lambda: None),
        launcher="stretto",
    )


def _of_torchrun(env: Mapping[str, str]) -> Identity:
    """torchrun's own store has MASTER_PORT, so the coordinator takes the next one."""
    rank, size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    together = size == 1 or env.get("LOCAL_WORLD_SIZE") == env.get("WORLD_SIZE")
    host, port = "127.0.0.1" if together else _text(env, "MASTER_ADDR"), _number(env, "MASTER_PORT") + 1
    job = f"torchrun {env.get('TORCHELASTIC_RUN_ID', '')} {port} {env.get('TORCHELASTIC_RESTART_COUNT', '')}"
    return Identity(
        rank=rank,
        size=size,
        local_rank=_number(env, "LOCAL_RANK") if env.get("LOCAL_RANK") else 0,
        coordinator=places.join(host, port),
        hosts_coordinator=rank == 0,
        secret=_secret(env, lambda: job_secret(job, env.get("XDG_RUNTIME_DIR")) if together else None),
        launcher="torchrun",
    )


def _of_slurm(env: Mapping[str, str]) -> Identity:
    rank = _number(env, "SLURM_PROCID")
    size = _number(env, "SLURM_STEP_NUM_TASKS" if env.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS")
    job = _number(env, "SLURM_JOB_ID")
    together = size == 1 or "1" in (env.get("SLURM_STEP_NUM_NODES"), env.get("SLURM_JOB_NUM_NODES"))
    host = "127.0.0.1" if together else first_host(_text(env, "SLURM_JOB_NODELIST"))
    name = f"slurm {job} {env.get('SLURM_STEP_ID', '')}"
    return Identity(
        rank=rank,
        size=size,
        local_rank=_number(env, "SLURM_LOCALID") if env.get("SLURM_LOCALID") else 0,
        coordinator=places.join(host, _SLURM_PORTS[job % len(_SLURM_PORTS)]),
        hosts_coordinator=rank == 0,
        secret=_secret(env, lambda: job_secret(name, env.get("XDG_RUNTIME_DIR")) if together else None),
        launcher="slurm",
    )


def first_host(nodelist: str) -> str:
    """The first name in a SLURM node list.

    >>> first_host("node[03-05,9],login1"), first_host("rack[1-2]n[07,9]")
    ('node03', 'rack1n07')
    """
    entry = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodelist)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", entry[0]) if entry else ""
    if not re.fullmatch(r"[\w.-]+", host):
        raise UsageError(
            f"cannot read SLURM_JOB_NODELIST={nodelist!r}; set STRETTO_COORDINATOR, _RANK and _SIZE instead"
        )
    return host


def _secret(env: Mapping[str, str], derive: Callable[[], str | None]) -> str:
    if env.get("STRETTO_SECRET"):
        return checked(env["STRETTO_SECRET"], "STRETTO_SECRET")
    if env.get("STRETTO_SECRET_FILE"):
        return secret_in(Path(env["STRETTO_SECRET_FILE"]))
    derived = derive()
    if derived is None:
        raise UsageError(
            "agents on several machines need a secret that they share; give every one the same STRETTO_SECRET, "
            f"or STRETTO_SECRET_FILE; {HOW}"
        )
    return derived


def _checked(identity: Identity) -> Identity:
    if identity.size < 1:
        raise UsageError(f"{identity.launcher} says there are {identity.size} agents; there must be at least 1")
    if identity.min_agents is not None and not 1 <= identity.min_agents <= identity.size:
        raise UsageError(
            f"STRETTO_MIN_AGENTS={identity.min_agents} of {identity.size} agents; give 1 to {identity.size}"
        )
    if identity.rank is not None and identity.rank >= identity.size and not identity.serves:
        raise UsageError(
            f"{identity.launcher} says this is agent {identity.rank} of {identity.size}; "
            f"ranks are 0 to {identity.size - 1}"
        )
    return identity


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(env[name]) if env.get(name) else None


def _seconds(env: Mapping[str, str], name: str) -> float | None:
    value = env.get(name)
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{name}={value!r} is not a number of seconds above 0")
    return seconds


def _text(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise UsageError(
            f"{name} is not set, though other variables of the same launcher are; set it, or unset them all"
        )
    return value


def _number(env: Mapping[str, str], name: str) -> int:
    value = _text(env, name)
    if not (value.isascii() and value.isdigit()):
        raise UsageError(f"{name}={value!r} is not a whole number of at least 0")
    return int(value)
