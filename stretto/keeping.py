"""A run's checkpoints: when an agent begins by one, and what it saves as it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from stretto import state
from stretto.checkpoint import Keep, rng
from stretto.core import Epoch
from stretto.courier import Courier
from stretto.errors import Diverged
from stretto.holdings import Holdings
from stretto.saving import Saver
from stretto.trace import Trace

_NOTHING: Final[dict[str, Any]] = {"codecs": [], "mixings": [], "slots": {}}
"""What an agent alone has to remember, as couriers say it."""


class Keeping:
    """What one agent does about them; nothing, as long as there is no saver.

    Args:
        where: its epoch and rank, now.
    """

    def __init__(
        self,
        saver: Saver | None,
        holds: Holdings,
        courier: Courier | None,
        label: int,
        where: Callable[[], tuple[Epoch, int]],
        trace: Trace,
        say: Callable[[str], None],
    ) -> None:
        self._saver, self._holds, self._courier = saver, holds, courier
        self._label, self._where, self._trace, self._say = label, where, trace, say
        self._begun = False

    def at(self, place: str, every: float, keep: Keep) -> bool:
        """Save there from now on, and go on from what is there, if anything is."""
        self._saver, self._begun = Saver(place, every, keep, self._say), False
        return self.begin()

    def begin(self) -> bool:
        """Once, at the beginning: all agree on where they begin; have we gone on from a checkpoint?"""
        if self._saver is None or self._begun:
            return False
        self._begun = True
        epoch, rank = self._where()
        choice = self._saver.choose(self._label) if rank == 0 else ""
        if self._courier is not None:
            told = self._courier.spread(choice)
            if told is None:
                return False  # a newcomer: it gets the others' state, and the name under which they save
            choice = told
        name = self._saver.begin(choice, rank)
        if name is None:
            return False
        shared, owns = self._saver.load(name, rank, epoch.size, self.tree())
        exact = name.parts == epoch.size
        self._holds.become(shared, members=epoch.uids if exact else None)
        if self._courier is not None:
            self._courier.assume(self._holds.network)
            self._courier.remember(state.packed([own["codecs"] for own in owns]), epoch.size / name.parts)
        if exact:
            rng.replay(owns[0]["random"])
        if owns:
            self._holds.become_own(owns[0]["local"], exact=exact)
        self._holds.resumed()
        self._trace.event("resume", step=self._holds.steps, checkpoint=str(name), digest=self._holds.digest())
        return True

    def join(self, run: str) -> None:
        """We have been let in by those who save as ``run``."""
        if self._saver is not None and run:
            self._saver.join(run)

    def tree(self) -> dict[str, Any]:
        """What all have alike."""
        epoch, _ = self._where()
        return self._holds.tree(self._saver.run if self._saver is not None else "", epoch.uids)

    @property
    def saves(self) -> bool:
        """Are checkpoints written?"""
        return self._saver is not None

    @property
    def due(self) -> bool:
        """Is it time, by the first agent's clock?"""
        return self._saver is not None and self._where()[1] == 0 and self._saver.due()

    def wish(self) -> None:
        """All have heard that it is time."""
        if self._saver is not None:
            self._saver.wanted = True

    def save_if_due(self) -> None:
        """Between two batches. An agent alone whose rounds tell it nothing goes by the clock."""
        saver = self._saver
        by_clock = self._courier is None and self._holds.loose is None
        if saver is not None and (saver.wanted or (by_clock and saver.due())):
            self._save(saver)

    def diverged(self, error: Diverged) -> Diverged:
        """The same, with the checkpoint that is to be gone back to."""
        saver = self._saver
        return Diverged(f"{error}; {saver.last() if saver is not None else 'no checkpoints were asked for'}")

    def close(self, *, failed: bool) -> None:
        """Save a last time, unless all has failed."""
        saver = self._saver
        try:
            if saver is not None and not failed:
                saver.close()  # what is under way first: the last one is not skipped
                self._save(saver)
                saver.close()
        finally:
            self._saver = None

    def _save(self, saver: Saver) -> None:
        holds = self._holds
        if self._courier is None:
            holds.steps = max((shard.ledger.steps for shard in holds.shards), default=0)
        local = holds.own()  # (it may wait for a round)
        if not (holds.finite and holds.stands):
            why = "weights are not finite" if holds.stands else "this agent goes, and the others train on without it"
            saver.skip(holds.steps, why)
            return
        courier = self._courier
        remembered = state.unpack(courier.remembered()) if courier is not None else _NOTHING
        epoch, rank = self._where()
        saver.save(holds.steps, rank, epoch.size, self.tree(), {"codecs": remembered, "local": local})
        self._trace.event("checkpoint", step=holds.steps, part=rank, parts=epoch.size)
