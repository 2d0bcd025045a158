"""What one process computes that does what servers and agents did, in its order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from stretto.core import State as Memory
from stretto.core import Strategy
from stretto.schedules import window
from stretto.simulate.history import History, Push, State
from stretto.simulate.task import MOMENTUM, RATE, Job, samples


def replayed(history: History, strategy: Strategy, final: Mapping[int, State], job: Job, weights: Tensor) -> float:
    """How far ``weights`` are from what that ends with, relative to them; 0 where codecs round what is pushed or read.

    Each push is computed anew from the states that its agent had read.
    """
    if not history.exact:
        return 0.0
    again = (_Drifts if strategy.signal == "drift" else _Gradients)(history, strategy, job)
    for state in history.states.values():
        again.step(state)
    ends = torch.zeros_like(weights)
    for slot, state in final.items():
        ends[history.places[slot]] = again.values[state]
    return float((ends - weights).abs().max() / weights.abs().max())


class _Again(ABC):
    """``values`` of every state so far, and what is remembered with them."""

    def __init__(self, history: History, strategy: Strategy, job: Job) -> None:
        self._history, self._strategy, self._job = history, strategy, job
        self.values: dict[State, Tensor] = {}
        self._memory: dict[State, Memory] = {}
        self._parts: dict[Push, Tensor] = {}

    def step(self, state: State) -> None:
        if state.before is None:
            self.values[state], self._memory[state] = state.values, None
        else:
            self.values[state], self._memory[state] = self._after(
                state, self.values[state.before], self._memory[state.before]
            )

    @abstractmethod
    def _after(self, state: State, values: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """What ``values`` and ``memory`` become in it."""
        ...

    @abstractmethod
    def _found(self, push: Push, weights: Tensor) -> Tensor:
        """What its agent found, from these weights."""
        ...

    def _part(self, push: Push, slot: int) -> Tensor:
        """What was pushed of a slot: found from the values that were read for it."""
        if push not in self._parts:
            weights = torch.zeros(sum(self._job.sizes), dtype=self._job.dtype)
            for number, (read, *_) in self._history.pushed[push].read.items():
                weights[self._history.places[number]] = self.values[read]
            self._parts[push] = self._found(push, weights)
        return self._parts[push][self._history.places[slot]]


class _Gradients(_Again):
    """By an optimizer at the servers."""

    def _after(self, state: State, values: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        rate, update = RATE, torch.zeros_like(values)
        if self._history.server.staleness == 0:
            for push in state.pushes:
                update = update + self._history.pushed[push].weight * self._part(push, state.slot) / state.members
        else:
            (push,) = state.pushes
            rate *= self._scale(push, state)
            update = self._compensated(push, state.slot, values)
        if not rate:
            return values, memory
        momentum = update if memory is None else MOMENTUM * memory + update
        return values - rate * momentum, momentum

    def _found(self, push: Push, weights: Tensor) -> Tensor:
        picked = [at for lease in self._history.pushed[push].leases for at in samples(lease.ranges)]
        return self._job.gradient(weights, picked)

    def _scale(self, push: Push, state: State) -> float:
        damping = 1 + state.tau if self._history.server.damped else 1
        return self._history.pushed[push].weight / state.members / damping

    def _compensated(self, push: Push, slot: int, values: Tensor) -> Tensor:
        part = self._part(push, slot)
        read = self._history.pushed[push].read[slot][0]
        return part + self._history.server.compensate * part * part * (values - self.values[read])


class _Drifts(_Again):
    """By agents' own optimizers, and an outer one at the servers."""

    def _after(self, state: State, values: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        (push,) = state.pushes
        windows = len(self._history.pushed[push].leases) / window(self._strategy.schedule)
        drift = self._part(push, state.slot) / windows
        move, memory = self._strategy.outer.update(drift, memory, windows / state.members)
        return values - move, memory

    def _found(self, push: Push, weights: Tensor) -> Tensor:
        own = weights
        for lease in self._history.pushed[push].leases:
            own = own - RATE * lease.share * self._job.gradient(own, samples(lease.ranges))
        return weights - own
