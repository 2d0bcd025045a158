"""What the benchmark of the parameter server promises. No timing is asserted."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from stretto.bench import confine, push_pull, pushing, stragglers
from stretto.bench.pushing.serving import Ready, serving
from stretto.cli.bench import bench
from stretto.errors import DataError, ScriptFailed, StrettoError, UnknownName, UsageError


class Alone:
    """A team of one."""

    rank, size = 0, 1

    def barrier(self) -> None: ...


class Losing:
    """A server that loses every push whose number is in ``lost``."""

    def __init__(self, lost: Sequence[int] = ()) -> None:
        self._number, self._lost, self._held = 0, lost, 0

    def room(self, nbytes: int) -> tuple[Tensor, Tensor]:
        return torch.ones(nbytes // 4), torch.zeros(nbytes // 4)

    def call(self, gradient: Tensor, values: Tensor) -> None:
        self._number += 1
        self._held += self._number not in self._lost
        values.fill_(-float(self._held))

    def close(self) -> None: ...


def _audited(contender: Losing) -> None:
    pushing_ = push_pull.Pushing("a server", contender)
    pushing_.begin(64)
    pushing_.turn(3)
    pushing_.audit(Alone())  # type: ignore[arg-type]


def test_all_pushes_of_a_size_are_counted_at_its_end() -> None:
    _audited(Losing())
    with pytest.raises(StrettoError, match="after 4 pushes values say 3 to 3"):
        _audited(Losing(lost=[2]))


def test_goals_are_those_of_the_size() -> None:
    assert push_pull.goals("4 KB") == {}
    assert push_pull.goals("64 KB") == {"tcp": {"plain sockets": 1.25}}
    assert push_pull.goals("16 MB")["shm"] == {"plain sockets": 0.5, "gRPC": 1, "pyzmq": 1, "Ray": 1}


def test_the_smallest_has_a_time_to_stay_below() -> None:
    seconds = {"tcp": [50 * 0.19e-3] * 3, "plain sockets": [50 * 0.07e-3] * 3}
    ours, sockets = push_pull.judged_rows("4 KB", seconds)
    assert (ours.most, ours.reached, sockets.reached) == (0.2, True, None)
    (late, _) = push_pull.judged_rows("4 KB", seconds | {"tcp": [50 * 0.21e-3] * 3})
    assert late.reached is False


def test_the_rate_is_of_both_agents_in_both_directions() -> None:
    (row,) = push_pull.judged_rows("100 MB", {"tcp": [0.1] * 3})
    assert push_pull.rate(row) == pytest.approx(4 * 104.8576e6 / 0.1 / 1e9)


@pytest.mark.network
@pytest.mark.parametrize("name", [name for name, peer in pushing.PEERS.items() if peer.version is not None])
def test_every_peers_server_adds_every_push_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_pull, "PEERS", {name: pushing.PEERS[name]})
    section = push_pull.run([], ["4 KB", "64 KB"], "", lambda line: None, rounds=1)  # raises where one is lost
    assert {row.contender for row in section.data} == {name}


@pytest.mark.network
def test_our_own_pushes_are_counted_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_pull, "PEERS", {})
    section = push_pull.run(["tcp", "shm"], ["4 KB", "64 KB"], "", lambda line: None, rounds=1)
    among = {link + push_pull.AMONG for link in ("tcp", "shm")}
    assert {row.contender for row in section.data} == {"tcp", "shm"} | among


def test_who_is_not_installed_has_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = pushing.Peer("Smoke signals", "smoke", "there-is-no-such-package")
    monkeypatch.setattr(push_pull, "PEERS", {absent.name: absent})
    section = push_pull.run([], [], "", lambda line: None)
    assert [cells[1:3] for cells in section.cells] == [("Smoke signals", "not installed")]
    assert "pip install" in section.about


def _pid(agents: int, ready: Ready) -> None:
    ready(str(os.getpid()))
    signal.pause()


def test_a_server_ends_with_the_block_that_needs_it() -> None:
    with serving("itself", _pid, 2) as pid:
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def _broken(agents: int, ready: Ready) -> None:
    raise RuntimeError("no port is free")


def test_a_server_that_cannot_begin_is_an_error_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ScriptFailed, match="carrier pigeons"), serving("carrier pigeons", _broken, 2):
        pass
    assert "no port is free" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "pull-push"], UnknownName),
        (["--sizes", "5MB"], UnknownName),
        (["--folder", "/no/such/place"], UsageError),
        (["--only", "stragglers", "--data", "/no/such/place"], DataError),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    arguments: list[str], error: type[Exception]
) -> None:
    assert isinstance(CliRunner().invoke(bench, ["server", *arguments]).exception, error)


def test_the_target_is_reached_when_most_runs_reached_it() -> None:
    assert stragglers.to_target([1.0, None, 3.0]) == "3.00"
    assert stragglers.to_target([1.0, None, None]) == "-"


def test_who_trains_nine_tenths_of_the_sum_of_own_speeds_has_reached_the_goal() -> None:
    runs = [stragglers.Trained(rate=91.0, share=share, to_target=1.0, accuracy=0.9) for share in (0.8, 0.91, 0.92)]
    assert stragglers.cells("`asp`", True, runs)[-2:] == ("at least 0.9", "yes")
    assert stragglers.cells("`asp`", True, runs[:1])[-1] == "no"
    assert stragglers.cells("`bsp`", False, runs)[-1] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_group_gives_its_share_in_short_periods_and_is_gone_afterwards() -> None:
    try:
        with confine.confined(0.25) as group:
            quota = [p.read_text().split() for p in group.iterdir() if p.name in ("cpu.cfs_quota_us", "cpu.max")]
            assert quota[0][0] == str(confine.PERIOD // 4)
        assert not group.exists()
    except UsageError as e:
        pytest.skip(str(e))
