"""What the harness of the benchmarks promises. No timing is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from stretto.bench import allreduce, overlap, report, step
from stretto.bench import team as teams
from stretto.bench.measure import Row, Spread, ratio, rows, spread, take_turns
from stretto.cli.bench import bench
from stretto.errors import ScriptFailed, UnknownName, UsageError

LABORATORY = Path(__file__).parents[1] / "benchmarks" / "laboratory.py"


class Alone:
    """A team of one, with a clock of its own for the others."""

    def __init__(self, others: float = 0.0) -> None:
        self.others = others
        self.barriers = 0

    def barrier(self) -> None:
        self.barriers += 1

    def gather(self, values: Any) -> list[list[float]]:
        begin, end = values
        return [[begin, end], [begin + self.others, end + self.others]]


def test_every_contender_has_a_turn_in_every_round_and_no_one_always_follows_the_same() -> None:
    order: list[str] = []
    turns = {name: (lambda name=name: order.append(name)) for name in "ABC"}
    seconds = take_turns(Alone(), turns, rounds=3, warm_up=0)
    assert "".join(order) == "ABC" + "BCA" + "CAB"
    assert {name: len(s) for name, s in seconds.items()} == {"A": 3, "B": 3, "C": 3}


def test_warm_up_rounds_run_and_are_not_counted() -> None:
    ran: list[int] = []
    seconds = take_turns(Alone(), {"A": lambda: ran.append(1)}, rounds=4, warm_up=2)
    assert (len(ran), len(seconds["A"])) == (6, 4)


def test_every_turn_begins_at_a_barrier_and_preparing_is_outside_the_clock() -> None:
    team, seen = Alone(), list[tuple[str, int]]()
    take_turns(
        team,
        {"A": lambda: seen.append(("turn", team.barriers))},
        rounds=1,
        before=lambda name: seen.append(("before", team.barriers)),
        after=lambda name: seen.append(("after", team.barriers)),
        warm_up=0,
    )
    assert seen == [("before", 0), ("turn", 1), ("after", 1)]


def test_a_turn_lasts_from_the_last_beginning_to_the_last_end() -> None:
    late = take_turns(Alone(others=5.0), {"A": lambda: None}, rounds=1, warm_up=0)["A"][0]
    assert 0 <= late < 1  # both clocks are five seconds late: that is nobody's time


def test_a_ratio_compares_turns_of_the_same_round() -> None:
    assert ratio([1.0, 10.0, 100.0], [2.0, 20.0, 200.0]) == Spread(0.5, 0.5, 0.5, 3)


def test_quartiles_are_reported_with_how_many_values_they_are_of() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0], scale=10) == Spread(30.0, 20.0, 40.0, 5)


def test_a_goal_is_met_by_the_median_of_ratios_against_every_opponent_that_was_there() -> None:
    times = {"ours": [1.0, 1.0, 9.0], "Gloo": [4.0, 4.0, 4.0]}
    goals = {"ours": {"Gloo": 0.25, "Open MPI": 0.5}}
    ours, gloo = rows(2, "16 MB", times, ("Gloo", "Open MPI"), goals)
    assert ours.reached is True and gloo.reached is None
    (missed, _) = rows(2, "16 MB", times | {"ours": [2.0, 2.0, 2.0]}, ("Gloo",), goals)
    assert missed.reached is False


def test_the_page_has_every_table_with_the_command_above_it() -> None:
    row = Row(agents=2, case="4 KB", contender="tcp", ms=spread([0.1, 0.2, 0.3]), goals={"Gloo": 0.5})
    section = report.compared("All-reduce", "stretto bench allreduce", "about", [row], ("Gloo",))
    text = report.page([section], report.machine())
    assert (
        text.index("## All-reduce") < text.index("`stretto bench allreduce`") < text.index("| 2 | 4 KB | tcp | 0.200 ")
    )
    assert "| - |" in text  # Gloo was not measured


def test_the_worst_difference_is_found_wherever_it_is() -> None:
    x = torch.zeros(3 * (1 << 18) + 5)
    y = x.clone()
    assert allreduce.worst(x, y) == 0
    y[-1] = 0.25
    assert allreduce.worst(x, y) == 0.25


def test_goals_are_those_of_the_size() -> None:
    assert allreduce.goals("4 KB")["tcp"] == {"Gloo": 0.5}
    assert allreduce.goals("1 MB")["tcp"] == {"Gloo": 1.0}
    assert allreduce.goals("100 MB")["shm, through the courier"] == {"Gloo": 0.25, "Open MPI": 0.5}


def test_hidden_is_one_when_a_step_does_not_grow_and_none_when_it_grows_by_the_whole_exchange() -> None:
    seconds = {"no exchange": [1.0, 1.0], "tcp": [1.0, 1.5], "tcp alone": [0.5, 0.5]}
    assert overlap.hidden(seconds, "tcp") == Spread(0.5, 0.25, 0.75, 2)


def test_the_models_are_as_large_as_their_names_say() -> None:
    sizes = {name: sum(p.numel() for p in make().parameters()) for name, make in step.MODELS.items()}
    assert sizes["cnn"] == 421_642
    assert 9.5e6 < sizes["mlp-10m"] < 10.5e6


def _numbers(team: teams.Team, ask: dict[str, Any]) -> None:
    for _ in range(50):
        team.barrier()
        team.gather((float(team.rank),))
        team.gather((0.0, float(team.rank)))
    team.tell(team.gather((float(team.rank), ask["x"])))


def test_all_processes_gather_the_same_numbers_and_the_first_tells() -> None:
    assert list(teams.run(3, _numbers, {"x": 7.0})) == [[[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]]]


def _one_fails(team: teams.Team, ask: dict[str, Any]) -> None:
    if team.rank == 1:
        raise RuntimeError("a wrong mean")
    team.barrier()


def test_a_process_that_fails_ends_the_benchmark_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ScriptFailed):
        list(teams.run(3, _one_fails, {}))
    assert "a wrong mean" in capfd.readouterr().err
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # none is left


def _pids(team: teams.Team, ask: dict[str, Any]) -> None:
    courier = team.courier("tcp", "tcp")
    team.tell([int(pid) for (pid,) in team.gather((float(os.getpid()),))])
    time.sleep(60)
    courier.close()


@pytest.mark.network
def test_whoever_stops_listening_ends_all_processes() -> None:
    found = teams.run(2, _pids, {}, epochs=("tcp",))
    pids = next(found)
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    found.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.network
def test_agents_of_a_team_join_as_users_do_and_their_mean_is_right() -> None:
    section = allreduce.run([2], ["tcp", "shm"], ["4 KB"], "stretto bench allreduce", lambda line: None)
    who = {row.contender for row in section.data}
    assert {"tcp", "tcp, through the courier", "shm, through the courier", "Gloo"} <= who
    assert all(row.ms.count >= 20 for row in section.data)
    assert ("Open MPI" in who) == (teams.why_no_mpi() is None)
    assert "Open MPI" in who or "not installed" in section.about


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["allreduce", "--agents", "1"], UsageError),
        (["allreduce", "--agents", "two"], UsageError),
        (["allreduce", "--sizes", "5MB"], UnknownName),
        (["allreduce", "--link", "smh"], UnknownName),
        (["step", "--models", "transformer"], UnknownName),
        (["step", "--json", "/no/such/place.json"], UsageError),
        (["all", "--folder", "/no/such/place"], UsageError),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    arguments: list[str], error: type[Exception]
) -> None:
    result = CliRunner().invoke(bench, arguments)
    assert isinstance(result.exception, error)


@pytest.mark.network
def test_the_command_writes_its_rows_as_json(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    result = CliRunner().invoke(
        bench, ["allreduce", "--agents", "2", "--link", "shm", "--sizes", "4KB", "--json", str(path)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["machine"]["cores"] >= 1
    assert {row["contender"] for row in found["section"]["data"]} >= {"shm, through the courier", "Gloo"}


def test_the_laboratorys_script_measures_what_is_asked_for(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.json"
    command = [sys.executable, str(LABORATORY), "--only", "no such network", "--json", str(nothing)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(nothing.read_text())["rows"] == []


@pytest.mark.network
def test_ctrl_c_leaves_no_process_behind() -> None:
    command = [sys.executable, "-c", "from stretto.cli import main; main(['bench', 'allreduce', '--sizes', '100MB'])"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        deadline = time.monotonic() + 30
        while not _descendants(run.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        started = _descendants(run.pid)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=20) != 0
    while any(Path(f"/proc/{pid}").exists() for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert started and not any(Path(f"/proc/{pid}").exists() for pid in started)


def _descendants(pid: int) -> set[int]:
    found = set[int]()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= {int(child)} | _descendants(int(child))
    return found
