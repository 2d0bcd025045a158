"""A simulated server: the session of one, as it is, in a process of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stretto.errors import StrettoError
from stretto.membership import View, Vote
from stretto.session import ServerSession
from stretto.simulate.process import Process
from stretto.simulate.promises import Broken
from stretto.simulate.watched import watching

if TYPE_CHECKING:
    from stretto.simulate.world import World


class Server(Process):
    """A server's process. ``leaving``: it has said goodbye."""

    def __init__(self, world: World, uid: int, label: int, vote: Vote | None) -> None:
        super().__init__(world, uid, label, vote)
        self._session = ServerSession(uid, self, self._failed, watching(world.history))
        self.leaving = False

    @property
    def session(self) -> ServerSession:
        return self._session

    def begin(self, view: View) -> None:
        """Serve."""
        assert self.views is not None
        if any(seat.uid == self.uid for seat in view.seats):
            self.install(view)
        else:
            self.to_session("knock")
        self.do(self.views.begin())

    def leave_soon(self) -> None:
        if not self.leaving:
            self.leaving = True
            self.leave()

    def dismissed(self) -> None:
        self.leave_soon()

    def _failed(self, error: StrettoError) -> None:
        raise Broken(f"{self} cannot go on: {type(error).__name__}: {error}")
