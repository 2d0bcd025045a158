"""The launcher: who is killed comes back, failures are shown once, and nothing is left running, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from stretto.errors import ScriptFailed, UsageError
from stretto.launch.lives import Lives
from stretto.launch.supervise import Care, run_agents

RANK = "import os; rank = int(os.environ['STRETTO_RANK'])\n"
COURIER = "import subprocess, sys; courier = subprocess.Popen(['sleep', '600'])\n"
PEER_LOST = "class PeerLost(Exception): pass\n"


KILL = "import signal\ndef kill(number=signal.SIGKILL): os.kill(os.getpid(), number)\n"


def script(*lines: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", "".join(lines)]


def pid_writer(folder: Path) -> str:
    """Leaves the process ids of the agent and of the process it started, complete from the first moment."""
    return (
        f"folder = {str(folder)!r}\n"
        "open(f'{folder}/.{rank}', 'w').write(f'{os.getpid()} {courier.pid}')\n"
        "os.rename(f'{folder}/.{rank}', f'{folder}/{rank}')\n"
    )


def lives(folder: Path) -> str:
    """``life`` counts the lives of this agent, from 1; ``wait(rank, life)`` returns when another has got so far."""
    return (
        f"import time\nfolder = {str(folder)!r}\n"
        "life = 1\n"
        "while os.path.exists(f'{folder}/life-{rank}-{life}'): life += 1\n"
        "open(f'{folder}/life-{rank}-{life}', 'w').close()\n"
        "def wait(rank, life):\n    while not os.path.exists(f'{folder}/life-{rank}-{life}'): time.sleep(0.01)\n"
    )


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def coordinators() -> list[psutil.Process]:
    """Those that this process or its children have started."""
    here = psutil.Process().children(recursive=True)
    living = [p for p in here if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in living if "stretto.launch.coordination" in p.cmdline()]


def running(folder: Path) -> list[int]:
    pids = [int(word) for file in folder.glob("[0-9]*") for word in file.read_text().split()]
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_a_killed_agent_is_started_again_with_its_number_while_others_train(tmp_path: Path, number: int) -> None:
    lines: list[str] = []
    act = f"if rank == 1 and life == 1: kill({number:d})\nif rank != 1: wait(1, 2)\nprint('life', life)\n"
    assert run_agents(script(RANK, KILL, lives(tmp_path), act), 3, on_line=lines.append) == 0
    name = signal.Signals(number).name
    assert lines.count(f"stretto: agent 1 was killed by {name}; started again (1st time)") == 1
    assert sorted(line for line in lines if "| " in line) == ["0| life 1", "1| life 2", "2| life 1"]


def test_what_a_killed_agent_had_started_is_gone_before_it_comes_back(tmp_path: Path) -> None:
    """Its courier would hold its sockets, and its number among the others."""
    courier = "import subprocess\nif rank == 1 and life == 1: old = subprocess.Popen(['sleep', '600']).pid\n"
    tell = "if rank == 1 and life == 1: open(f'{folder}/courier', 'w').write(str(old)); kill()\n"
    look = (
        "def alive(pid):\n"
        "    try: return open(f'/proc/{pid}/stat').read().split()[2] != 'Z'\n"
        "    except OSError: return False\n"
        "if rank == 1: print('alive' if alive(open(f'{folder}/courier').read()) else 'gone')\nelse: wait(1, 2)\n"
    )
    lines: list[str] = []
    run_agents(script(RANK, KILL, lives(tmp_path), courier, tell, look), 2, on_line=lines.append)
    assert "1| gone" in lines


def test_without_restarts_the_others_go_on_without_a_killed_agent(tmp_path: Path) -> None:
    lines: list[str] = []
    act = "if rank == 1: kill()\ntime.sleep(0.3)\nprint('done')\n"
    command = script(RANK, KILL, lives(tmp_path), act)
    assert run_agents(command, 3, care=Care(restarts=0), on_line=lines.append) == 0
    assert "stretto: agent 1 was killed by SIGKILL; no agent is started again, and the others go on without it" in lines
    assert sorted(line for line in lines if "| " in line) == ["0| done", "2| done"]


def test_an_agent_that_dies_after_every_start_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto.launch.lives.MOST_QUICK", 2)
    lines: list[str] = []
    act = "if rank == 1: kill()\nwait(1, 2)\ntime.sleep(0.3)\n"
    assert run_agents(script(RANK, KILL, lives(tmp_path), act), 2, on_line=lines.append) == 0
    assert lines[-1].endswith("it died 2 times in a row within 10 s of its start, and the others go on without it")


@pytest.mark.parametrize("restarts", [0, None])
def test_when_no_agent_is_left_nobody_has_the_model_and_the_run_fails_in_words(
    tmp_path: Path, restarts: int | None
) -> None:
    """The other is given up, or has not been started again yet."""
    act = f"if rank == 1: wait(0, {1 if restarts == 0 else 2}); time.sleep(0.3)\nkill()\n"
    with pytest.raises(
        ScriptFailed, match="agent 1 was killed by SIGKILL, and no other agent is left that has the mod"
    ):
        run_agents(script(RANK, KILL, lives(tmp_path), act), 2, care=Care(restarts=restarts))


def test_when_no_agent_is_left_all_begin_again_from_their_checkpoint(tmp_path: Path) -> None:
    lines: list[str] = []
    act = "if rank == 0 and life < 3: kill()\nif rank == 1 and life == 1: wait(0, 2); time.sleep(0.3); kill()\n"
    command = script(RANK, KILL, lives(tmp_path), act, "print('end')")
    assert run_agents(command, 2, care=Care(checkpoint="runs/a"), on_line=lines.append) == 0
    assert sorted(line for line in lines if "| " in line) == ["0| end", "1| end"]
    assert (
        "stretto: agent 1 was killed by SIGKILL, and no other agent is left that has the model; "
        "all are started again (1st time), to go on from the checkpoint runs/a"
    ) in lines


def test_an_agent_that_is_killed_when_the_others_have_finished_is_not_started_again(tmp_path: Path) -> None:
    lines: list[str] = []
    act = f"if rank == 1:\n    while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n    kill()\n"

    def heard(line: str) -> None:
        lines.append(line)
        if line == "0| end":
            time.sleep(0.5)  # the launcher hears of this end before the other comes
            (tmp_path / "go").touch()

    assert run_agents(script(RANK, KILL, lives(tmp_path), act, "print('end')"), 2, on_line=heard) == 0
    assert lines[-1] == "stretto: agent 1 was killed by SIGKILL; it is not started again, for the others have finished"


def test_an_agent_that_waits_for_its_next_start_does_not_get_it_when_the_others_finish(tmp_path: Path) -> None:
    lines: list[str] = []
    act = "if rank == 1: kill()\nwait(1, 2)\ntime.sleep(0.3)\n"
    assert run_agents(script(RANK, KILL, lives(tmp_path), act), 2, on_line=lines.append) == 0
    assert lines[-2:] == [
        "stretto: agent 1 was killed by SIGKILL; started again in 1 s (2nd time)",
        "stretto: agent 1 is not started again, for the others have finished",
    ]


def test_an_agent_that_comes_back_too_late_and_hangs_is_named_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto.launch.running._LATE", 0.5)
    lines: list[str] = []
    act = "if rank == 1 and life == 1: kill()\nif rank == 1: time.sleep(600)\nwait(1, 2)\n"
    assert run_agents(script(RANK, KILL, lives(tmp_path), act), 2, on_line=lines.append) == 0
    assert lines[-1] == "stretto: agent 1 was started again as the others finished, and hangs: it is killed"


def test_an_agent_that_lost_the_others_is_started_again_and_says_why(tmp_path: Path) -> None:
    lines: list[str] = []
    act = "if rank == 1 and life == 1: raise PeerLost('nobody answers')\nif rank != 1: wait(1, 2)\n"
    assert run_agents(script(RANK, PEER_LOST, lives(tmp_path), act), 3, on_line=lines.append) == 0
    assert lines == ["stretto: agent 1 lost the others (PeerLost: nobody answers); started again (1st time)"]


def test_an_agent_that_lost_the_others_may_take_its_time_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stretto.launch.hearing._HOLD", 0.1)
    lines: list[str] = []
    slow = "import traceback\ntry: raise PeerLost('nobody answers')\nexcept PeerLost: traceback.print_exc()\n"
    act = "if rank == 1 and life == 1:\n    fail()\n    time.sleep(0.5)\n    sys.exit(1)\nif rank != 1: wait(1, 2)\n"
    define = "import sys\ndef fail():\n    " + slow.replace("\n", "\n    ") + "\n"
    run_agents(script(RANK, PEER_LOST, lives(tmp_path), define, act), 2, on_line=lines.append)
    assert lines[-1] == "stretto: agent 1 lost the others (PeerLost: nobody answers); started again (1st time)"


def test_a_script_that_fails_only_when_it_is_started_again_is_shown_and_ends_nobody_else(tmp_path: Path) -> None:
    lines: list[str] = []
    act = "if rank == 1 and life == 1: kill()\nif rank == 1 and life == 2: os.mkdir(folder)\nwait(1, 3)\n"
    assert run_agents(script(RANK, KILL, lives(tmp_path), act), 2, on_line=lines.append) == 0
    said = [line for line in lines if line.startswith("stretto")]
    assert said == [
        "stretto: agent 1 was killed by SIGKILL; started again (1st time)",
        "stretto: agent 1 ended with exit code 1; started again in 1 s (2nd time)",
    ]
    assert sum("FileExistsError" in line for line in lines) == 1


def test_starts_come_later_and_later_while_an_agent_dies_right_after_them() -> None:
    lives = Lives()
    said = [str(lives := lives.died(after=1.0)) for _ in range(4)]
    assert said == [
        "started again (1st time)",
        "started again in 1 s (2nd time)",
        "started again in 2 s (3rd time)",
        "started again in 4 s (4th time)",
    ]
    assert lives.died(after=1.0).why_no_more == "it died 5 times in a row within 10 s of its start"
    assert str(lives.died(after=60.0)) == "started again (5th time)"
    assert [str(replace(lives, deaths=n)).split("(")[1] for n in (11, 21, 112)] == [
        "11th time)",
        "21st time)",
        "112th time)",
    ]


def test_restarts_are_counted_where_they_are_limited() -> None:
    once = Lives(most=1).died(after=60.0)
    assert once.why_no_more is None
    assert once.died(after=60.0).why_no_more == "an agent is started again 1 times at most"


def test_killing_the_coordinator_ends_nobody_else(tmp_path: Path) -> None:
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        if line == "0| here":
            (process,) = coordinators()
            process.kill()
        if line.startswith("stretto"):
            (tmp_path / "go").touch()

    act = f"print('here', flush=True)\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    assert run_agents(script(RANK, "import time\n", act), 2, on_line=heard) == 0
    assert "stretto: the coordinator was killed by SIGKILL; an agent takes its place" in lines


def test_no_coordinator_outlives_its_run() -> None:
    run_agents(script("pass"), 2)
    assert coordinators() == []


def test_where_agents_elsewhere_hold_the_model_the_last_one_here_is_started_again_too(tmp_path: Path) -> None:
    lines: list[str] = []
    command = script(RANK, KILL, lives(tmp_path), "if life == 1: kill()\n")
    code = run_agents(
        command, 1, first_rank=1, size=2, coordinator="10.0.0.1:29400", secret="s" * 32, on_line=lines.append
    )
    assert (code, lines) == (0, ["stretto: agent 1 was killed by SIGKILL; started again (1st time)"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_a_coordinator_for_agents_elsewhere_ends_when_none_of_them_is_here() -> None:
    address = f"127.0.0.1:{free_port()}"
    assert run_agents(script("pass"), 1, size=2, coordinator=address, hosts_coordinator=True, secret="s" * 32) == 0
    assert coordinators() == []


def test_a_coordinator_for_agents_elsewhere_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    launcher = (
        "import sys; from stretto.launch.supervise import run_agents\n"
        f"run_agents(sys.argv[1:], 2, size=4, coordinator={address!r}, hosts_coordinator=True, secret='s' * 32)"
    )
    command = script(RANK, COURIER, pid_writer(tmp_path), "import time; time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", launcher, *command], process_group=0)
    wait_until(lambda: len(list(tmp_path.glob("[0-9]*"))) == 2)
    (coordinator,) = coordinators()
    process.kill()
    process.wait()
    wait_until(lambda: running(tmp_path) == [])
    assert coordinator.is_running()
    coordinator.kill()  # it would end by itself, a moment later


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
