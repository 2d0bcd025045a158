"""What an agent holds, as others and checkpoints need it: models, what else has a state, shards, how far it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from stretto.core import Network
from stretto.data import Shard
from stretto.loose import Loose
from stretto.preparing import Stateful, alike, alike_part, digest


class Holdings:
    """``steps`` of the run, trained by whomever; ``network`` as the agents found it when they began.

    ``loose``: where agents train by themselves.
    """

    def __init__(self) -> None:
        self.models: list[nn.Module] = []
        self.stateful: list[Stateful] = []
        self.shards: list[Shard] = []
        self.loose: Loose | None = None
        self.steps = 0
        self.network = Network()

    def digest(self) -> str:
        """A hash of all models' parameters and buffers."""
        return digest(self.models)

    @property
    def drawn(self) -> int | None:
        """Batches that all have drawn so far; None where nothing is dealt."""
        return self.shards[0].drawn if self.shards else None

    def tree(self, run: str) -> dict[str, Any]:
        """What all have alike, in plain values; ``run`` is the name under which they save."""
        drifts, local = (self.loose.drifts, self.loose.local) if self.loose else (None, [])
        return {
            "models": [alike(model, drifts.shared() if drifts else {}) for model in self.models],
            "stateful": [alike_part(part, part in local) for part in self.stateful],
            "outers": drifts.state() if drifts else [],
            "steps": self.steps,
            "network": [self.network.delay, self.network.rate],
            "run": run,
            "shards": [shard.state() for shard in self.shards],
        }

    def become(self, tree: dict[str, Any], *, join: bool = False) -> None:
        """Hold what ``tree`` says; ``join``: as one of those whose it is."""
        for model, found in zip(self.models, tree["models"], strict=True):
            model.load_state_dict(found)
        for part, found in zip(self.stateful, tree["stateful"], strict=True):
            if found is not None:
                part.load_state_dict(found)
        self.steps = tree["steps"]
        self.network = Network(*tree["network"])
        for shard, found in zip(self.shards, tree["shards"], strict=False):
            shard.adopt(found, join=join)
        if self.loose is not None:
            self.loose.adopt(tree["outers"])

    def own(self) -> list[Any]:
        """What is this agent's alone, in plain values."""
        return [part.state_dict() for part in self.loose.local] if self.loose is not None else []

    def become_own(self, own: list[Any]) -> None:
        for part, found in zip(self.loose.local if self.loose is not None else [], own, strict=True):
            part.load_state_dict(found)
