"""Who is killed comes back, as long as others hold the model for it."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from launched import KILL, PEER_LOST, RANK, lives, script

from stretto.errors import ScriptFailed
from stretto.launch.lives import Lives
from stretto.launch.supervise import Care, run_agents


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
