"""The command line: it refuses before it starts, in one line, and gives one result."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stretto import cli, text
from stretto.cli import launching, live, output
from stretto.cli.compare import row, table, uncoded
from stretto.errors import ScriptFailed
from stretto.launch.supervise import Care
from stretto.workloads.folder import News, leave_outcome
from stretto.workloads.result import Job, Outcome, Progress, Result, combine


@pytest.fixture
def stretto(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command here; gives its exit code, standard output and standard error."""
    monkeypatch.delenv("STRETTO_DATA", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


PROOF = "8 samples, each exactly once; ledger 5f3a0c97d2e1"


def outcome(rank: int, **changes: Any) -> Outcome:
    values: dict[str, Any] = {
        "rank": rank, "agents": 4, "steps": 1, "samples": 2, "trained": 8, "proof": PROOF, "seconds": 2.0,
        "accuracy": 0.9, "loss": 0.1, "bytes_sent": 1000, "bytes_received": 1000, "wire_sent": 1010,
        "wire_received": 1010, "waiting": 0.5, "sent_training": 900, "codec_seconds": 0.0, "dense": 0, "coded": 0,
        "rate": 1e6, "digest": "d",
    }  # fmt: skip
    return Outcome(**(values | changes))


def progress(**changes: Any) -> Progress:
    values: dict[str, Any] = {
        "rank": 0, "agents": 4, "step": 3, "epoch": 1, "samples": 96, "seconds": 2.0, "loss": 0.25, "accuracy": 0.5,
        "bytes_sent": 10**7, "bytes_received": 10**7, "waiting": 0.5,
    }  # fmt: skip
    return Progress(**(values | changes))


@pytest.fixture
def agents_that_end_well(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """No processes: each agent tells some news and leaves an outcome at once."""
    jobs: list[Job] = []

    def run_agents(command: list[str], agents: int, **_: Any) -> int:
        job = msgspec.json.decode(command[-1], type=Job)
        jobs.append(job)
        news = News(Path(job.folder))
        for rank in range(agents):
            news.tell(progress(rank=rank))
            leave_outcome(Path(job.folder), outcome(rank))
        news.close()
        return 0

    monkeypatch.setattr(launching, "run_agents", run_agents)
    return jobs


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, "no command is named 'trian'; did you mean train"),
        (["train", "digit"], 2, "no workload is named 'digit'; did you mean digits"),
        (["train", "--model", "cn"], 2, "no model of digits is named 'cn'; did you mean cnn"),
        (["train", "--strategy", "allreduc"], 2, "no strategy is named 'allreduc'; did you mean allreduce"),
        (["train", "--link", "tpc"], 2, "no link is named 'tpc'; did you mean tcp"),
        (["train", "--agents", "0"], 2, "0 agents cannot train; give --agents 1 or more"),
        (["train", "--agents", "-3"], 2, "-3 agents cannot train"),
        (["train", "--agents", "many"], 2, "'many' is not a valid integer"),
        (["train", "--agents", "1438"], 2, "more agents than samples: 1438 agents, 1437 samples"),
        (["train", "--epochs", "0"], 2, "--epochs 0: give at least 1"),
        (["train", "--seconds", "nan"], 2, "--seconds nan: give more than 0"),
        (["train", "--target", "95"], 2, "--target 95: accuracy is from 0 to 1"),
        (["train", "--batch-size", "0"], 2, "--batch-size 0"),
        (["train", "--json", "/nowhere/r.json"], 2, "/nowhere does not exist"),
        (["train", "--json", "/"], 2, "that is a directory"),
        (["train", "mnist", "--data", "/nowhere"], 5, "/nowhere is not a directory"),
        (["train", "--nonsense"], 2, "No such option"),
        (["compare", "--strategies", ";"], 2, "nothing to compare"),
        (["train", "--strategy", "allreduce(topology=native, codec=int8)"], 2, "use topology=auto with a codec"),
        (["compare", "--strategies", "allreduce; allreduc"], 2, "no strategy is named 'allreduc'"),
        (["run", "--agents", "0", __file__], 2, "0 agents"),
        (["run", "no-such-script.py"], 2, "there is no script no-such-script.py"),
        (["run", "--host", "a", __file__], 2, "give --cluster FILE too"),
        (["run", "--cluster", "/nowhere.toml", __file__], 2, "cannot read /nowhere.toml"),
        (["run"], 2, "Missing argument 'SCRIPT'"),
        (["run", "--restarts", "-1", __file__], 2, "--restarts -1: give 0 or more"),
        (["run", "--min-agents", "5", __file__], 2, "--min-agents 5 of 4 agents: give 1 to 4"),
        (["train", "--min-agents", "0"], 2, "--min-agents 0 of 4 agents"),
        (["train", "--checkpoint", "a", "--checkpoint-every", "0"], 2, "--checkpoint-every 0: give more than 0"),
        (["train", "--checkpoint-every", "5"], 2, "give --checkpoint PLACE too"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    stretto: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    def start_nothing(*_: Any, **__: Any) -> int:
        raise AssertionError("started agents before everything was checked")

    monkeypatch.setattr(launching, "run_agents", start_nothing)
    got, out, err = stretto(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("stretto: ") and err.count("\n") == 1 and words in err


def test_a_data_directory_without_the_files_says_what_it_lacks(stretto: Any, tmp_path: Path) -> None:
    code, _, err = stretto("train", "fashion-mnist", "--data", str(tmp_path))
    assert code == 5 and "lacks train-images-idx3-ubyte.gz" in err and err.count("\n") == 1


def test_the_launcher_of_scripts_does_without_torch() -> None:
    script = (
        "import sys; from stretto import cli\ntry: cli.main(['run', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("False\n")


def test_help_names_every_command_without_importing_torch() -> None:
    script = "import sys; from stretto import cli\ntry: cli.main(['--help'])\nfinally: print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in answer.stdout for name in cli.COMMANDS)
    assert answer.stdout.endswith("False\n")


@pytest.mark.parametrize("command", ["demo", "train", "run", "compare"])
def test_every_command_explains_itself(stretto: Any, command: str) -> None:
    code, out, _ = stretto(command, "--help")
    assert code == 0 and f"Usage: stretto {command}" in out and "--json" in out


def test_train_gives_one_result_with_the_documented_keys(
    stretto: Any, agents_that_end_well: list[Job], tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    code, out, err = stretto("train", "--agents", "2", "--epochs", "1", "--json", str(path))
    assert (code, err) == (0, "")
    assert "accuracy 90.0 %" in out and PROOF in out and "digests of 2 agents equal: d" in out
    result = json.loads(path.read_text())
    assert (
        (result["proof"], result["finished"], result["samples"]) == (PROOF, [0, 1], 8)
        and result["computing"] == [1.5, 1.5]
        and result["strategy"] == "allreduce"
    )
    assert {
        "workload",
        "model",
        "agents",
        "link",
        "seed",
        "samples",
        "seconds",
        "digests",
        "versions",
        "machine",
    } <= set(result)
    (job,) = agents_that_end_well
    assert (job.batch_size, job.epochs) == (64, 1) and not Path(job.folder).exists()


def test_json_on_standard_output_stands_alone_there(stretto: Any, agents_that_end_well: list[Job]) -> None:
    code, out, err = stretto("train", "--json", "-")
    assert code == 0 and json.loads(out)["agents"] == 4
    assert "accuracy" in err


def test_a_target_that_is_not_reached_is_a_failure_with_a_result(stretto: Any, agents_that_end_well: list[Job]) -> None:
    code, out, err = stretto("train", "--target", "0.99", "--json", "-")
    assert code == 1 and json.loads(out)["reached"] is False
    assert "stretto: accuracy 0.900 after 2.0 s; --target 0.99 was not reached" in err


def test_a_failing_agent_is_heard_once_and_leaves_no_folder(stretto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def run_agents(command: list[str], agents: int, *, on_line: Any, **_: Any) -> int:
        folders.append(Path(msgspec.json.decode(command[-1], type=Job).folder))
        on_line("1| ValueError: [bold] loss")
        raise ScriptFailed("agent 1 ended with exit code 1")

    monkeypatch.setattr(launching, "run_agents", run_agents)
    code, out, err = stretto("train")
    assert (code, err) == (6, "stretto: agent 1 ended with exit code 1\n")
    assert "1| ValueError: [bold] loss" in out
    assert not folders[0].exists()


def test_agents_that_leave_no_outcome_are_named(stretto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "run_agents", lambda *_, **__: 0)
    code, _, err = stretto("train", "--agents", "2")
    assert code == 6 and "all 2 agents ended without an outcome" in err


def test_the_result_is_of_those_that_finished_and_says_who_did_not(
    stretto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_agents(command: list[str], agents: int, **_: Any) -> int:
        folder = Path(msgspec.json.decode(command[-1], type=Job).folder)
        for rank in (0, 2):
            leave_outcome(folder, outcome(rank))
        return 0

    monkeypatch.setattr(launching, "run_agents", run_agents)
    code, out, err = stretto("train", "--agents", "3", "--json", "-")
    assert code == 0 and json.loads(out)["agents"] == 2
    assert "the result is of 2 of 3 agents: agent 1 did not finish" in err


def test_what_to_do_when_agents_die_reaches_the_launcher(stretto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Care] = []

    def run_agents(command: list[str], agents: int, *, care: Care, **_: Any) -> int:
        given.append(care)
        return 130

    monkeypatch.setattr(launching, "run_agents", run_agents)
    monkeypatch.setattr(importlib.import_module("stretto.cli.run"), "run_agents", run_agents)
    options = "--restarts", "3", "--min-agents", "2", "--checkpoint", "runs/a", "--checkpoint-every", "60"
    stretto("train", *options)
    stretto("run", *options, __file__)
    assert given == 2 * [Care(restarts=3, min_agents=2, checkpoint="runs/a", checkpoint_every=60.0)]


def test_interruption_is_one_line_and_130(stretto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "run_agents", lambda *_, **__: 130)
    code, _, err = stretto("train")
    assert (code, err.strip()) == (130, "stretto: interrupted")


def test_compare_interleaves_strategies_over_seeds(stretto: Any, agents_that_end_well: list[Job]) -> None:
    code, out, _ = stretto(
        "compare", "--strategies", "allreduce; allreduce(topology=ring)", "--seeds", "2", "--json", "-"
    )
    result = json.loads(out)
    names = [row["strategy"] for row in result["rows"]]
    assert code == 0 and len(result["runs"]) == 4 and names[0] == "allreduce" and len(names) == 2
    assert [(j.strategy, j.seed) for j in agents_that_end_well] == [(n, s) for s in (0, 1) for n in names]


def test_rows_give_the_median_and_the_spread() -> None:
    job = Job(workload="digits", model="mlp", strategy="allreduce", link="auto", batch_size=1, seed=0, folder="")
    made = row("allreduce", [combine(job, [outcome(0, accuracy=a)]) for a in (0.7, 0.9, 0.8)])
    assert (made.accuracy.median, made.accuracy.least, made.accuracy.most) == (0.8, 0.7, 0.9)
    assert table([made]).row_count == 1


def coded(sent: int, codec_seconds: float, *, seconds: float = 1.0, ratio: int = 0) -> list[Result]:
    """One run of 100 steps on a network of 1 MB/s; an agent sends so many bytes in a step."""
    job = Job(workload="digits", model="mlp", strategy="allreduce", link="tcp", batch_size=1, seed=0, folder="")
    changes = {"steps": 100, "seconds": seconds, "sent_training": 100 * sent, "codec_seconds": 100 * codec_seconds}
    return [combine(job, [outcome(0, rate=1e6, dense=100 * ratio, coded=100 * bool(ratio), **changes)])]


@pytest.mark.parametrize(
    ("cost", "before", "seconds", "words"),
    [
        (0.003, 9000, 0.9, "costs 3 ms a step here and saves 8 ms at 8 Mbit/s: it pays (a step took 9 ms, and 10 ms w"),
        (0.009, 9000, 1.1, "saves 8 ms at 8 Mbit/s: slower than not compressing (a step took 11 ms, and 10 ms without"),
        (0.003, 9000, 1.2, "saves 8 ms at 8 Mbit/s: by that it pays, but it was measured otherwise (a step took 12 ms"),
        (0.009, 9000, 0.8, "saves 8 ms at 8 Mbit/s: by that it does not pay, but it was measured otherwise (a step to"),
        (0.009, 9000, 0.95, "saves 8 ms at 8 Mbit/s: slower than not compressing (a step took 9.5 ms, and 10 ms witho"),
        (0.003, 0, 1.1, "saves nothing at 8 Mbit/s: slower than not compressing"),
        (0.003, None, 1.1, "costs 3 ms a step here and saves 9 ms at 8 Mbit/s: it pays"),
    ],
    ids=[
        "it pays",
        "it does not",
        "it should and does not",
        "it should not and does",
        "noise",
        "nothing is sent without",
        "nobody ran without",
    ],
)
def test_a_codec_is_told_whether_it_pays(cost: float, before: int | None, seconds: float, words: str) -> None:
    without = [] if before is None else coded(before, 0.0)
    made = row("allreduce(codec=int8)", coded(1000, cost, seconds=seconds, ratio=10), without)
    assert words in made.verdict
    assert row("allreduce", coded(9000, 0.0)).verdict == ""


def test_a_strategy_is_beside_itself_without_its_codec() -> None:
    assert uncoded("allreduce(topology=ring, codec=feedback(sign))") == "allreduce(topology=ring)"


@pytest.mark.parametrize("width", [80, 100])
def test_names_and_numbers_of_a_comparison_are_read_whole(width: int) -> None:
    from rich.console import Console

    paper = io.StringIO()
    made = row("allreduce(codec=feedback(sign))", [*coded(123456, 0.01, ratio=10), *coded(123456, 0.02, ratio=10)])
    Console(file=paper, width=width).print(table([made]))
    assert "…" not in paper.getvalue() and "123.5" in paper.getvalue() and "15.00" in paper.getvalue()


def test_demo_shows_the_proofs(stretto: Any, agents_that_end_well: list[Job]) -> None:
    code, out, err = stretto("demo", "--seed", "1")
    assert agents_that_end_well[0].seed == 1
    assert code == 4 and "report this" in err  # these agents trained eight samples, not 1437 thirty times
    assert "agents equal" in out


def test_a_terminal_gets_a_table_and_everything_else_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    screen = Console(force_terminal=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    shown = live.view(screen, "title", 2)
    assert isinstance(shown, live.Screen)
    shown.show(progress())
    assert shown.table().row_count == 2
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(live.view(Console(force_terminal=True), "title", 2), live.Lines)
    assert isinstance(live.view(Console(force_terminal=False), "title", 2), live.Lines)


def test_lines_speak_when_accuracy_is_news(capsys: pytest.CaptureFixture[str]) -> None:
    with live.view(output.console(None), "digits", 2) as seen:
        for number in range(50):
            seen.show(progress(seconds=1 + number / 100, accuracy=0.5))
        seen.show(progress(rank=1))
        seen.show(progress(seconds=3.0, accuracy=0.75))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits" and [("50.0 %" in li, "75.0 %" in li) for li in lines[1:]] == [
        (True, False),
        (False, True),
    ]


def test_no_colour_is_written_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = output.console(None)
    assert console.no_color


def test_known_strategies_are_registered_by_their_import() -> None:
    import stretto.strategies  # noqa: F401

    assert "allreduce" in text.names("strategy")
