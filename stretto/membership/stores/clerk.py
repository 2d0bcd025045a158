"""The store as a voter: a view whose only voter is :data:`STORE` is followed by the one that the store lets stand.

Theory of operation. To a proposer the store is one more process, of this uid, that answers :class:`Prepare` with a
promise, or with the view that stands already, and :class:`Propose` by compare and swap: accepted where this view stands
now, and else the one that does. One swap decides a number for good, so promises need not be kept, and a proposer that
dies between the swap and its :class:`Decide` has decided: the next one is told. Answers come from a thread, for stores
block.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from stretto.errors import NetworkError
from stretto.membership.messages import STORE, Accepted, Decide, Prepare, Promise, Propose
from stretto.membership.stores.store import Store
from stretto.membership.votes import blank

_AGAIN: Final = 1.0

Question: TypeAlias = Prepare | Propose
Answer: TypeAlias = Promise | Accepted | Decide


def answer(store: Store, question: Question) -> Answer:
    """What ``store`` says, as a voter, to a proposer."""
    if isinstance(question, Prepare):
        stands, base = store.latest(), question.base.number
        if stands is not None and stands.number > base:
            return Decide(stands)
        return Promise(base + 1, question.ballot, blank(STORE, base + 1), None)
    stands = store.decide(question.view)
    if stands == question.view:
        return Accepted(stands.number, question.ballot)
    return Decide(stands)


def doors(store: Store) -> tuple[str, ...]:
    """Where a newcomer finds the run: the control addresses of those that are here, who came first first."""
    return tuple(address for seat in store.present() for address in seat.control)


class Clerk:
    """Carries questions to a store, one at a time, for as long as it takes; ``answers(answer)`` in its own thread.

    A question that finds no answer makes way for the next: a proposer that asks again has given up the one before.
    ``say`` is told, in words, that the store does not answer.
    """

    def __init__(self, store: Store, answers: Callable[[Answer], object], say: Callable[[str], object]) -> None:
        self._store, self._answers, self._say = store, answers, say
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="stretto-clerk", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> None:
        """From any thread."""
        self._questions.put(question)

    def close(self) -> None:
        """Ask no more. The store stays open."""
        self._closing.set()
        self._questions.put(None)
        self._thread.join()

    def _serve(self) -> None:
        question = self._questions.get()
        while question is not None and not self._closing.is_set():
            try:
                said = answer(self._store, question)
            except NetworkError as e:
                self._say(f"the store cannot decide on the next view: {e}")
                self._closing.wait(_AGAIN)
                question = question if self._questions.empty() else self._questions.get()
                continue
            self._answers(said)
            question = self._questions.get()
