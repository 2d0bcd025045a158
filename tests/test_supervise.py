"""The launcher: failures are shown once, and nothing is left running, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from launched import COURIER, PEER_LOST, RANK, coordinators, pid_writer, running, script, wait_until

from stretto.errors import ScriptFailed, UsageError
from stretto.launch.supervise import Care, run_agents


def test_every_line_is_passed_on_behind_the_number_of_its_agent(capfd: pytest.CaptureFixture[str]) -> None:
    code = run_agents(
        script(RANK, "import sys; print('hello'); print('careful', file=sys.stderr); print('end', end='')"), 3
    )
    out, err = capfd.readouterr()
    assert code == 0
    assert sorted(out.splitlines()) == sorted(f"{r}| {word}" for r in range(3) for word in ("hello", "end"))
    assert sorted(err.splitlines()) == [f"{r}| careful" for r in range(3)]


def test_a_single_agent_writes_to_our_own_output_itself(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_agents(script("print('hello')"), 1) == 0
    assert capfd.readouterr().out == "hello\n"


def test_agents_are_told_who_they_are(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = "STRETTO_SIZE", "STRETTO_LOCAL_RANK", "STRETTO_COORDINATOR", "STRETTO_LINK", "OMP_NUM_THREADS"
    tell = f"print(*(os.environ[name] for name in {names}), len(os.environ['STRETTO_SECRET']))"
    run_agents(
        script(RANK, tell),
        2,
        first_rank=2,
        size=6,
        coordinator="10.0.0.1:29400",
        secret="s" * 32,
        link="tcp",
    )
    out = capfd.readouterr().out
    assert sorted(out.splitlines()) == ["2| 6 0 10.0.0.1:29400 tcp 1 32", "3| 6 1 10.0.0.1:29400 tcp 1 32"]


def test_a_failure_is_shown_once_with_its_agent_and_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    fail = "import time\nif rank == 1: raise ValueError('the cause')\ntime.sleep(600)\n"
    with pytest.raises(ScriptFailed, match="agent 1 ended with exit code 1"):
        run_agents(script(RANK, fail), 4)
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1 and "1| ValueError: the cause" in err
    assert "agents 0, 2, 3 ended because agent 1 failed" in err


def test_who_has_finished_is_not_said_to_have_ended_because_of_another(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Agent 0 finishes just when it would be ended, and agent 2 would go on."""
    act = (
        "import signal\nif rank == 0: signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
        f"open({str(tmp_path)!r} + f'/ready-{{rank}}', 'w').close()\n"
        f"while len(os.listdir({str(tmp_path)!r})) < 3: pass\n"
        "if rank == 1: raise ValueError('the cause')\nimport time; time.sleep(600)\n"
    )
    with pytest.raises(ScriptFailed, match="agent 1 ended"):
        run_agents(script(RANK, act), 3)
    assert "stretto: agent 2 ended because agent 1 failed" in capfd.readouterr().err.splitlines()


def test_the_echo_of_a_failure_in_the_others_is_not_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The others fail first, as they do when the culprit takes its time to end."""
    gate = tmp_path / "gate"
    fail = (
        f"import time, os.path\ngate = {str(gate)!r}\n"
        "if rank == 1:\n    try: raise ValueError('the cause')\n    finally: open(gate, 'w').close(); time.sleep(0.4)\n"
        "while not os.path.exists(gate): time.sleep(0.01)\n"
        "raise PeerLost('agent 1 left')\n"
    )
    with pytest.raises(ScriptFailed, match="agent 1 ended"):
        run_agents(script(RANK, PEER_LOST, fail), 3)
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1 and "the cause" in err and "PeerLost" not in err
    assert "agents 0, 2 ended because agent 1 failed" in err


def test_when_all_only_missed_each_other_one_of_them_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ScriptFailed):
        run_agents(script(RANK, PEER_LOST, "raise PeerLost('the network is gone')"), 3)
    err = capfd.readouterr().err
    assert err.count("Traceback") == 1 and "because" not in err


def test_a_traceback_that_was_caught_and_logged_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    log = "import traceback\ntry: raise KeyError('harmless')\nexcept KeyError: traceback.print_exc()\n"
    assert run_agents(script(RANK, log), 2) == 0
    assert capfd.readouterr().err.count("KeyError: 'harmless'") == 2


def test_an_agent_killed_from_outside_is_named_with_its_signal() -> None:
    with pytest.raises(
        ScriptFailed,
        match="agent 0 was killed by SIGKILL; start the run again, and see whether the machine was out of m",
    ):
        run_agents(script(RANK, "import signal\nos.kill(os.getpid(), signal.SIGKILL)"), 1)


def test_a_failure_takes_the_processes_beside_the_agents_with_it(tmp_path: Path) -> None:
    fail = (
        "import time, os.path\n"
        f"while not all(os.path.exists(f'{tmp_path}/{{r}}') for r in range(3)): time.sleep(0.01)\n"
        "if rank == 2: sys.exit(3)\ntime.sleep(600)\n"
    )
    with pytest.raises(ScriptFailed, match="agent 2 ended with exit code 3"):
        run_agents(script(RANK, COURIER, pid_writer(tmp_path), fail), 3)
    wait_until(lambda: running(tmp_path) == [])


def test_agents_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    fail = (
        f"import os.path\nwhile not all(os.path.exists(f'{tmp_path}/{{r}}') for r in range(2)): time.sleep(0.01)\n"
        "if rank == 0: sys.exit(1)\ntime.sleep(600)\n"
    )
    with pytest.raises(ScriptFailed):
        run_agents(script(RANK, deaf, COURIER, pid_writer(tmp_path), fail), 2)
    wait_until(lambda: running(tmp_path) == [])


def test_an_agent_that_ends_well_may_leave_its_courier_a_moment(capfd: pytest.CaptureFixture[str]) -> None:
    courier = "import subprocess; subprocess.Popen(['/bin/sh', '-c', 'sleep 0.3; echo goodbye'])"
    assert run_agents(script(courier), 2) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0| goodbye", "1| goodbye"]


def test_what_a_courier_leaves_behind_is_ended(tmp_path: Path) -> None:
    assert run_agents(script(RANK, COURIER, pid_writer(tmp_path)), 2) == 0
    wait_until(lambda: running(tmp_path) == [])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_agents_and_tells_so_in_the_exit_code(tmp_path: Path, number: int, code: int) -> None:
    """The signal goes to this process, whose main thread is the launcher."""
    command = script(RANK, COURIER, pid_writer(tmp_path), "import time; time.sleep(600)")

    def interrupt() -> None:
        wait_until(lambda: len(list(tmp_path.glob("[0-9]*"))) == 3)
        os.kill(os.getpid(), number)

    other = threading.Thread(target=interrupt)
    other.start()
    assert run_agents(command, 3) == code
    other.join()
    wait_until(lambda: running(tmp_path) == [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_agent_outlives_the_launcher(tmp_path: Path, number: int) -> None:
    """The signal goes to the launcher's whole process group: Ctrl-C, or ``kill -9``."""
    agent = tmp_path / "agent.py"
    agent.write_text(RANK + COURIER + pid_writer(tmp_path) + "import time; time.sleep(600)\n")
    launcher = "import sys; from stretto.launch.supervise import run_agents; sys.exit(run_agents(sys.argv[1:], 3))"
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, sys.executable, "-I", "-S", str(agent)],
        process_group=0,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(list(tmp_path.glob("[0-9]*"))) == 3)
    assert len(running(tmp_path)) == 6
    (coordinator,) = coordinators()
    state = psutil.Process(running(tmp_path)[0]).environ()["STRETTO_STATE"]
    assert os.path.isdir(state)
    os.killpg(process.pid, number)
    assert process.wait() == (130 if number == signal.SIGINT else -signal.SIGKILL)
    wait_until(lambda: running(tmp_path) == [] and not coordinator.is_running() and not os.path.exists(state))


def test_agents_share_a_private_folder_that_goes_with_the_launch(tmp_path: Path) -> None:
    look = (
        "import stat; state = os.environ['STRETTO_STATE']\n"
        "print(state, oct(stat.S_IMODE(os.stat(state).st_mode)))\n"
        "open(f'{state}/vote-{rank}', 'w').close()\n"
    )
    lines: list[str] = []
    run_agents(script(RANK, look), 2, on_line=lines.append)
    (words,) = {tuple(line.split()[1:]) for line in lines}
    assert words[1] == "0o700" and not os.path.exists(words[0])


def test_what_to_do_when_agents_die_is_told_to_the_agents() -> None:
    lines: list[str] = []
    names = "STRETTO_MIN_AGENTS", "STRETTO_CHECKPOINT", "STRETTO_CHECKPOINT_EVERY"
    care = Care(min_agents=1, checkpoint="runs/a", checkpoint_every=0.5)
    run_agents(script(f"import os; print(*map(os.environ.get, {names}))"), 1, care=care, on_line=lines.append)
    assert lines == ["0| 1 runs/a 0.5"]


def test_lines_can_be_taken_by_the_caller() -> None:
    lines: list[str] = []
    run_agents(script("import sys; print('a'); print('b', file=sys.stderr)"), 1, on_line=lines.append)
    assert sorted(lines) == ["0| a", "0| b"]


def test_an_error_of_the_caller_leaves_nothing_running(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise RuntimeError(line)

    command = script(RANK, COURIER, pid_writer(tmp_path), "import time; print('go', flush=True); time.sleep(600)")
    with pytest.raises(RuntimeError, match="0\\| go"):
        run_agents(command, 1, on_line=refuse)
    wait_until(lambda: running(tmp_path) == [])


def test_a_progress_bar_reads_as_it_looks_in_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    run_agents(script("print('10%\\r50%\\r100%\\r')"), 2)
    assert sorted(capfd.readouterr().out.splitlines()) == ["0| 100%", "1| 100%"]


def test_what_cannot_be_run_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="no program 'pyhton'"):
        run_agents(["pyhton", "train.py"], 2)
    with pytest.raises(UsageError, match="0 agents cannot run"):
        run_agents(script("pass"), 0)
    with pytest.raises(UsageError, match=r"secret of the coordinator at 10\.0\.0\.1:29400"):
        run_agents(script("pass"), 2, coordinator="10.0.0.1:29400")
