"""How the holders of an epoch are found: all tell the first agent what they have, and it tells all who holds what.

Theory of operation. Who was first in a slot's chain has the latest version of it, so of those who are left whoever has
the highest gives it to the others. Where every step is one of all (staleness 0), a death may leave some slots a step
ahead of others. Nobody has seen all of that step, so it is undone where it was made: all go on from the step that every
slot has made, and what was pushed for the next one is pushed again.

A slot whose chain changes is given to those who lack it. Until all of them have it, nobody is answered, so all copies
that there were remain good, also those that are a push behind, and are kept; afterwards they are not. So a plan comes
into force when all know it: who reports for the next one knows whose copies are good.
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
_KNOWN: Final = 12


T = TypeVar("T")


class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """What is held: the strategy, the buckets, the optimizer. The same at all agents; servers are told it."""

    strategy: str
    extents: tuple[Extent, ...]
    rule: Rule


SlotsOf = Callable[[Spec], tuple[Sequence[Slot], "int | None", int]]


class Copy(Struct, frozen=True, forbid_unknown_fields=True):
    """A copy of a slot: what it has seen, and its holder's ``place`` in the chain; -1: none, it is kept for others."""

    version: int
    changes: int
    place: int


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """What one member has.

    Attributes:
        entered: the number of the epoch in which it came in.
        force: the number of the last plan (its epoch's) of which it knows that all knew it; 0: none.
        plan: the number of the last plan that it knows; 0: none.
        copies: by slot; what was good when that plan was made, or was given to it since.
        lacking: slots that it is to have by that plan, and was not given yet.
    """

    uid: int
    serves: bool
    spec: Spec | None
    entered: int
    force: int
    plan: int
    copies: dict[int, Copy]
    lacking: tuple[int, ...] = ()


class Plan(Struct, frozen=True, forbid_unknown_fields=True):
    """Who holds what in this epoch.

    Attributes:
        members: uids of the agents, by rank.
        chains: ranks, by slot; nobody, where all copies of a slot are gone.
        having: who has the latest of a slot, the one who gives it to others first; nobody, where nothing was held yet.
        good: whose copies have all that was answered: these, and some who keep theirs for a while.
        clock: to which all slots go back, where every step is one of all.
    """

    spec: Spec
    members: tuple[int, ...]
    chains: tuple[tuple[int, ...], ...]
    having: tuple[tuple[int, ...], ...]
    good: tuple[tuple[int, ...], ...]
    clock: int | None

    def lacking(self, slot: int) -> tuple[int, ...]:
        """Who is to hold it, and is given it."""
        having = self.having[slot]
        return tuple(rank for rank in self.chains[slot] if having and rank not in having)


async def settle(link: Link, report: Report, slots_of: SlotsOf, known: Callable[[Plan], None]) -> Plan:
    """The plan of this epoch, when all know it; ``known(plan)`` is called when we do.

    ``slots_of`` makes a spec's slots, and says its bound and the length of chains.

    Raises:
        PeerLost: somebody is gone: there will be another epoch.
        Disagreement: agents hold different things.
    """
    if link.rank:
        link.post(0, (_written(report),), _REPORT)
        plan = _read((await link.recv(0, _PLAN)).payload, Plan)
        known(plan)
        link.post(0, (_nothing(),), _KNOWN)
        await link.recv(0, _KNOWN)
        return plan
    coming = [link.recv(other, _REPORT) for other in range(1, link.size)]
    reports = [report, *[_read((await message).payload, Report) for message in coming]]
    plan = made(reports, link.hosts, *slots_of(_agreed(reports)))
    known(plan)
    for other in range(1, link.size):
        link.post(other, (_written(plan),), _PLAN)
    for other in range(1, link.size):
        await link.recv(other, _KNOWN)
    for other in range(1, link.size):
        link.post(other, (_nothing(),), _KNOWN)
    return plan


def _nothing() -> Tensor:
    return torch.zeros(1, dtype=torch.uint8)


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
    last = _in_force(reports)
    copies = [_good(reports, last, slot.number) for slot in slots]
    versions = [found[0][0].version for found in copies if found]
    clock = min(versions, default=0) if last and staleness == 0 else None
    having = [_having(found, clock) for found in copies]
    current = {slot.number: ranks for slot, ranks in zip(slots, having, strict=True)}
    chains = assign([slot.nbytes for slot in slots], holders, hosts, replicas, current)
    if last:
        chains = tuple(chain if ranks else () for chain, ranks in zip(chains, having, strict=True))
    good = tuple(tuple(rank for _, rank in found) for found in copies)
    return Plan(spec, tuple(reports[rank].uid for rank in agents), chains, tuple(map(tuple, having)), good, clock)


def _in_force(reports: Sequence[Report]) -> int:
    """The number of the last plan that all know who were to; 0: there was none."""
    plans = {report.plan for report in reports} - {0}
    known = [plan for plan in plans if all(report.plan >= plan for report in reports if report.entered <= plan)]
    return max(known + [report.force for report in reports])


def _good(reports: Sequence[Report], last: int, slot: int) -> list[tuple[Copy, int]]:
    """Copies that have all that was answered, the latest first, and of those the first in the chain.

    By the plan that was in force ``last``, that is who is in the chain, and, as long as one of these lacks it, who kept
    it for them. Who knows a later plan, which was not in force, has been told by it what is good.
    """
    known = [(rank, report) for rank, report in enumerate(reports) if last and report.plan >= last]
    kept = any(slot in report.lacking for _, report in known if report.plan == last)
    found = [(report.copies[slot], rank, report.plan) for rank, report in known if slot in report.copies]
    copies = [(copy, rank) for copy, rank, plan in found if copy.place >= 0 or kept or plan > last]
    return sorted(copies, key=lambda x: (-x[0].version, -x[0].changes, x[0].place < 0, x[0].place, x[1]))


def _having(found: Sequence[tuple[Copy, int]], clock: int | None) -> list[int]:
    """Whose copies are as good as the first; those that are beyond ``clock`` go back to it."""
    first = found[0][0] if found else None
    return [
        rank
        for copy, rank in found
        if first is not None
        and copy.changes == first.changes
        and copy.version >= (first.version if clock is None else clock)
    ]


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
