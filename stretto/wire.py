"""How an agent that trains by itself reaches the others: through its courier, or, alone, not at all.

What waits is written as coroutines (:mod:`stretto.loose`), which a simulated agent runs in virtual time. A trainer has
nothing else to do meanwhile: here what they await is waited for on the spot, so :func:`finish` runs them to their end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from stretto.courier import Courier
from stretto.errors import NonFinite
from stretto.notices import Given
from stretto.session import Closing

T = TypeVar("T")


class Owner(Protocol):
    """Whose wire it is."""

    @property
    def size(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def drawn(self) -> int | None: ...
    @property
    def ends(self) -> bool: ...
    @property
    def members(self) -> tuple[int, ...]: ...
    @property
    def rank(self) -> int: ...
    @property
    def saves(self) -> bool: ...
    def wishes(self) -> bool: ...
    def stood(self, closing: Closing, known: bytes, *, save: bool) -> None: ...
    def trained(self, closing: Closing, *, save: bool, but: int) -> None: ...


class Wire:
    """The wire of group ``group``; see :class:`stretto.notices.Wire`."""

    def __init__(self, owner: Owner, courier: Courier | None, group: int) -> None:
        self._owner, self._courier, self._group = owner, courier, group
        self.closed, self.stood = owner.trained, owner.stood

    @property
    def size(self) -> int:
        return self._owner.size

    @property
    def drawn(self) -> int | None:
        return self._owner.drawn

    @property
    def ends(self) -> bool:
        return self._owner.ends

    def wishes(self) -> tuple[bool, bool]:
        return self._owner.wishes(), self._courier is not None and self._courier.held

    def agree(self, given: Sequence[Given], *, fence: bool) -> Awaitable[Closing]:
        courier = self._courier
        if courier is None:
            for one in given:
                if one.mean is not one.flat:
                    one.mean.copy_(one.flat)
            return _Now(lambda: Closing(0, self._owner.members))
        waits = [
            courier.mean(self._group, one.flat, one.mean, bucket=i, of=len(given), fence=fence, part=one.part)
            for i, one in enumerate(given)
        ]
        return _Now(lambda: self._ended(waits))

    def mix(self, part: int, x: Tensor, clock: int) -> Awaitable[bool]:
        if self._courier is None:
            return _Now(lambda: False)
        return _Now(self._courier.mix(self._group, x, part=part, clock=clock))

    # Servers (see :class:`stretto.pushing.Wire`)

    @property
    def rank(self) -> int:
        return self._owner.rank

    @property
    def saves(self) -> bool:
        return self._owner.saves

    def push(self, weight: float, lease: int, hyper: Tensor, parts: Sequence[tuple[Tensor, ...]]) -> Awaitable[bool]:
        assert self._courier is not None
        return _Now(self._courier.push(weight, lease, hyper, parts))

    def ask(self, what: str, x: Tensor, clock: int = 0) -> Awaitable[bool]:
        assert self._courier is not None
        return _Now(self._courier.inquire(what, x, clock))

    def _ended(self, waits: Sequence[Callable[[], Closing | None]]) -> Closing:
        closings = [at_step(self._owner.steps, wait) for wait in waits]
        return next(closing for closing in closings if closing is not None)


class _Now(Generic[T]):
    """What is waited for on the spot."""

    def __init__(self, wait: Callable[[], T]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[None, None, T]:
        yield from ()
        return self._wait()


def at_step(steps: int, wait: Callable[[], T]) -> T:
    """Say at which step numbers were not finite."""
    try:
        return wait()
    except NonFinite as e:
        raise NonFinite(f"step {steps + 1}: {e}") from None


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work``, which awaits nothing but what is waited for on the spot, with gradients off."""
    try:
        with torch.no_grad():
            work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("it waits for something that only time can bring")
