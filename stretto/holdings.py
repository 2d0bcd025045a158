"""What an agent holds, as others and checkpoints need it: models, what else has a state, shards, how far it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from stretto.core import Network
from stretto.data import Leased, Shard
from stretto.delayed import Delayed
from stretto.loose import Loose
from stretto.preparing import Stateful, alike, alike_part, digest
from stretto.pushing import Pushing
from stretto.wire import finish


class Holdings:
    """``steps`` of the run, trained by whomever; ``network`` as the agents found it when they began.

    ``loose``: where agents train by themselves, or exchange while they go on; where ``local`` has a state of each
    agent's own.
    """

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.stateful: list[Stateful] = []
        self.shards: list[Shard | Leased] = []
        self.loose: Loose | Delayed | Pushing | None = None
        self.local: list[Stateful] = []
        self.steps = 0
        self.network = Network()

    def digest(self) -> str:
        """A hash of all models' parameters and buffers."""
        return digest(self.models)

    @property
    def finite(self) -> bool:
        """Are all weights numbers, this agent's own and those that all share?"""
        shared = self.loose.shared() if self.loose is not None else {}
        parameters = (p for model in self.models for p in model.parameters())
        return all(bool(x.isfinite().all()) for p in parameters for x in (p, shared.get(id(p), p)))

    @property
    def stands(self) -> bool:
        """Is all that we hold as it was at one point of the training?"""
        return not isinstance(self.loose, Pushing) or self.loose.stands

    @property
    def drawn(self) -> int | None:
        """Batches that all have drawn so far; None where nothing is dealt."""
        return self.shards[0].drawn if self.shards else None

    def tree(self, run: str, members: tuple[int, ...]) -> dict[str, Any]:
        """What all have alike, in plain values; ``run``: under which they save, ``members``: what they are called."""
        shared = self.loose.shared() if self.loose is not None else {}
        return {
            "models": [alike(model, shared) for model in self.models],
            "stateful": [alike_part(part, part in self.local) for part in self.stateful],
            "outers": self.loose.state() if self.loose is not None else [],
            "steps": self.steps,
            "network": [self.network.delay, self.network.rate],
            "run": run,
            "members": list(members),
            "shards": [shard.state() for shard in self.shards],
        }

    def become(self, tree: dict[str, Any], *, join: bool = False, members: tuple[int, ...] | None = None) -> None:
        """Hold what ``tree`` says.

        ``join``: as one of those whose it is; ``members``: what these are called now, in a run that goes on with as
        many of them, each of which will have its own back (:meth:`become_own`).
        """
        for model, found in zip(self.models, tree["models"], strict=True):
            model.load_state_dict(found)
        for part, found in zip(self.stateful, tree["stateful"], strict=True):
            if found is not None:
                part.load_state_dict(found)
        self.steps = tree["steps"]
        self.network = Network(*tree["network"])
        renamed = dict(zip(tree["members"], members, strict=True)) if members is not None else None
        for shard, found in zip(self.shards, tree["shards"], strict=False):
            shard.adopt(found, join=join, renamed=renamed)
        if self.loose is not None:
            self.loose.adopt(tree["outers"])

    def resumed(self) -> None:
        """All hold what a checkpoint says: servers are to hold it, too."""
        if isinstance(self.loose, Pushing):
            finish(self.loose.reload())

    def own(self) -> dict[str, Any] | None:
        """What is this agent's alone, in plain values."""
        if self.loose is None:
            return None
        return {"loose": finish(self.loose.own()), "parts": [part.state_dict() for part in self.local]}

    def become_own(self, own: dict[str, Any] | None, *, exact: bool) -> None:
        """Have it back; unless all is ``exact``, weights begin where all agreed last."""
        if self.loose is None or own is None:
            return
        for part, found in zip(self.local, own["parts"], strict=True):
            part.load_state_dict(found)
        if exact and own["loose"] is not None:
            self.loose.become_own(own["loose"])
