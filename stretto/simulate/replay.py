"""What one process computes that does what servers and agents did, in its order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stretto.simulate.history import History, Push, State
from stretto.simulate.task import MOMENTUM, RATE, Job, samples


def replayed(history: History, final: Mapping[int, State], job: Job, weights: Tensor) -> float:
    """How far ``weights`` are from what that ends with, relative to them; 0 where it is no gradient, or codecs round.

    Each push is computed anew from the states that its agent had read.
    """
    if not history.exact:
        return 0.0
    again = _Again(history, job)
    for state in history.states.values():
        again.step(state)
    ends = torch.zeros_like(weights)
    for slot, state in final.items():
        ends[history.places[slot]] = again.values[state]
    return float((ends - weights).abs().max() / weights.abs().max())


class _Again:
    """``values`` and ``momentum`` of every state so far."""

    def __init__(self, history: History, job: Job) -> None:
        self._history, self._job = history, job
        self.values: dict[State, Tensor] = {}
        self._momentum: dict[State, Tensor] = {}
        self._gradients: dict[Push, Tensor] = {}

    def step(self, state: State) -> None:
        if state.before is None:
            self.values[state], self._momentum[state] = state.values, torch.zeros_like(state.values)
            return
        values, momentum = self.values[state.before], self._momentum[state.before]
        rate, update = RATE, torch.zeros_like(values)
        if self._history.server.staleness == 0:
            for push in state.pushes:
                update = update + self._history.pushed[push].weight * self._part(push, state.slot) / state.members
        else:
            (push,) = state.pushes
            rate *= self._scale(push, state)
            update = self._compensated(push, state.slot, values)
        if rate:
            momentum = MOMENTUM * momentum + update
            values = values - rate * momentum
        self.values[state], self._momentum[state] = values, momentum

    def _scale(self, push: Push, state: State) -> float:
        damping = 1 + state.tau if self._history.server.damped else 1
        return self._history.pushed[push].weight / state.members / damping

    def _part(self, push: Push, slot: int) -> Tensor:
        """Its gradient, at the values that were read for it."""
        if push not in self._gradients:
            pushed, places = self._history.pushed[push], self._history.places
            weights = torch.zeros(sum(self._job.sizes), dtype=self._job.dtype)
            for number, (read, *_) in pushed.read.items():
                weights[places[number]] = self.values[read]
            picked = [sample for lease in pushed.leases for sample in samples(lease.ranges)]
            self._gradients[push] = self._job.gradient(weights, picked)
        return self._gradients[push][self._history.places[slot]]

    def _compensated(self, push: Push, slot: int, values: Tensor) -> Tensor:
        part = self._part(push, slot)
        read = self._history.pushed[push].read[slot][0]
        return part + self._history.server.compensate * part * part * (values - self.values[read])
