"""How the holders of an epoch are found: all tell the first agent what they have, and it tells all who holds what.

Theory of operation. Who was first in a slot's chain has the latest version of it, so of those who are left whoever has
the highest gives it to the others. Where every step is one of all (staleness 0), a death may leave some slots a step
ahead of others. Nobody has seen all of that step, so it is undone where it was made: all go on from the step that every
slot has made, and what was pushed for the next one is pushed again.

Copies that are not needed any more are kept until those who need one have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from stretto.core import Link, Payload
from stretto.errors import Disagreement, ProtocolError
from stretto.server.rules import Rule
from stretto.server.space import Extent, Slot, assign

_REPORT: Final = 10
_PLAN: Final = 11


T = TypeVar("T")


class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """What is held: the strategy, the buckets, the optimizer. The same at all agents; servers are told it."""

    strategy: str
    extents: tuple[Extent, ...]
    rule: Rule


SlotsOf = Callable[[Spec], tuple[Sequence[Slot], "int | None", int]]


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """What one member has: of each slot that it has a copy of, the version, and its place in the chain.

    ``begun``: it has had values that were held somewhere.
    """

    uid: int
    serves: bool
    spec: Spec | None
    begun: bool
    copies: dict[int, tuple[int, int]]


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """Who holds what in this epoch.

    Attributes:
        members: uids of the agents, by rank.
        chains: ranks, by slot; nobody, where all copies of a slot are gone.
        sources: who has a slot's latest version; -1: nobody, as nothing was held before.
        lacking: those of its chain who have not, by slot.
        versions: which one that is, by slot.
        clock: to which all slots go back, where every step is one of all.
    """

    spec: Spec
    members: tuple[int, ...]
    chains: tuple[tuple[int, ...], ...]
    sources: tuple[int, ...]
    lacking: tuple[tuple[int, ...], ...]
    versions: tuple[int, ...]
    clock: int | None


async def settle(link: Link, report: Report, slots_of: SlotsOf) -> Plan:
    """The plan of this epoch. ``slots_of`` makes a spec's slots, and says its bound and the length of chains.

    Raises:
        PeerLost: somebody is gone: there will be another epoch.
        Disagreement: agents hold different things.
    """
    if link.rank:
        link.post(0, (_written(report),), _REPORT)
        return _read((await link.recv(0, _PLAN)).payload, Plan)
    coming = [link.recv(other, _REPORT) for other in range(1, link.size)]
    reports = [report, *[_read((await message).payload, Report) for message in coming]]
    plan = made(reports, link.hosts, *slots_of(_agreed(reports)))
    for other in range(1, link.size):
        link.post(other, (_written(plan),), _PLAN)
    return plan


def made(
    reports: Sequence[Report], hosts: Sequence[int], slots: Sequence[Slot], staleness: int | None, replicas: int
) -> Plan:
    """The plan that follows from these reports, by rank. Pure.

    Raises:
        Disagreement: agents hold different things.
    """
    spec = _agreed(reports)
    agents = [rank for rank, report in enumerate(reports) if not report.serves]
    holders = [rank for rank, report in enumerate(reports) if report.serves] or agents
    fresh = not any(report.copies or report.begun for report in reports)
    having = [_having(reports, slot.number) for slot in slots]
    versions = [ranks[0][0] if ranks else 0 for ranks in having]
    clock = min((ranks[0][0] for ranks in having if ranks), default=0) if staleness == 0 and not fresh else None
    if clock is not None:
        versions = [clock] * len(versions)
    current = {
        slot.number: [rank for version, rank in ranks if version >= wanted]
        for slot, ranks, wanted in zip(slots, having, versions, strict=True)
    }
    chains = assign([slot.nbytes for slot in slots], holders, hosts, replicas, current)
    having_now = [current[slot.number] for slot in slots]
    if not fresh:
        chains = tuple(chain if ranks else () for chain, ranks in zip(chains, having_now, strict=True))
    return Plan(
        spec,
        tuple(reports[rank].uid for rank in agents),
        chains,
        tuple(ranks[0] if ranks else -1 for ranks in having_now),
        tuple(
            tuple(rank for rank in chain if ranks and rank not in ranks)
            for chain, ranks in zip(chains, having_now, strict=True)
        ),
        tuple(versions),
        clock,
    )


def _having(reports: Sequence[Report], slot: int) -> list[tuple[int, int]]:
    """(version, rank) of all copies, the latest first, and of those the first in the chain."""
    copies = [(*report.copies[slot], rank) for rank, report in enumerate(reports) if slot in report.copies]
    return [(version, rank) for version, _, rank in sorted(copies, key=lambda copy: (-copy[0], copy[1:]))]


def _agreed(reports: Sequence[Report]) -> Spec:
    specs = {msgspec.msgpack.encode(report.spec): report.spec for report in reports if report.spec is not None}
    if len(specs) != 1:
        raise Disagreement(f"{len(specs)} different models or strategies are on the servers; give all agents the same")
    return specs.popitem()[1]


def _written(what: Report | Plan) -> Tensor:
    return torch.frombuffer(bytearray(msgspec.msgpack.encode(what)), dtype=torch.uint8)


def _read(payload: Payload, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(payload[0].numpy().data, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError, IndexError) as e:
        raise ProtocolError(f"what holders tell each other is damaged: {e}; do all run the same version?") from e
