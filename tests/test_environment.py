"""Identity from the environment and from ``cluster.toml``: launchers are understood, and what is missing is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stretto.errors import UsageError
from stretto.launch.cluster import Host, Machine, Server, read_cluster
from stretto.launch.environment import Identity, first_host, read, read_server
from stretto.launch.secret import job_secret
from stretto.links import addresses

SECRET = "0123456789abcdef0123456789abcdef"
STRETTO = {
    "STRETTO_COORDINATOR": "10.0.0.1:29400",
    "STRETTO_RANK": "2",
    "STRETTO_SIZE": "4",
    "STRETTO_SECRET": SECRET,
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "job",
}
SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "6",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "node[03-05,9],login1",
    "SLURM_JOB_NUM_NODES": "4",
}


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    (tmp_path / "runtime").mkdir(mode=0o700)
    return str(tmp_path / "runtime")


def test_an_empty_environment_means_alone() -> None:
    assert read({}) == Identity(rank=0, size=1, launcher="alone")
    assert read({"STRETTO_LINK": "tcp", "STRETTO_SECRET": SECRET, "RANK": "1"}) == Identity(link="tcp")


def test_stretto_run_is_understood() -> None:
    assert read(
        {**STRETTO, "STRETTO_LOCAL_RANK": "1", "STRETTO_INTERFACE": "eth1", "STRETTO_TRACE": "a/b"}
    ) == Identity(
        rank=2,
        size=4,
        local_rank=1,
        coordinator="10.0.0.1:29400",
        secret=SECRET,
        launcher="stretto",
        interface="eth1",
        trace=Path("a/b"),
    )


def test_the_coordinator_may_have_successors_whose_addresses_are_known() -> None:
    several = {**STRETTO, "STRETTO_COORDINATOR": "10.0.0.1:29400, 10.0.0.2:29400"}
    assert read(several).coordinator == "10.0.0.1:29400,10.0.0.2:29400"
    with pytest.raises(UsageError, match=r"'10\.0\.0\.2' is not an address"):
        read({**STRETTO, "STRETTO_COORDINATOR": "10.0.0.1:29400,10.0.0.2"})


@pytest.mark.parametrize("environ", [STRETTO, TORCHRUN, SLURM], ids=["stretto", "torchrun", "slurm"])
def test_how_to_go_on_after_deaths_is_said_alike_under_every_launcher(environ: dict[str, str]) -> None:
    care = {
        "STRETTO_MIN_AGENTS": "2",
        "STRETTO_STATE": "/run/state",
        "STRETTO_CHECKPOINT": "runs/a",
        "STRETTO_CHECKPOINT_EVERY": "0.5",
    }
    identity = read({**environ, "STRETTO_SECRET": SECRET, **care})
    assert (identity.min_agents, identity.state) == (2, Path("/run/state"))
    assert (identity.checkpoint, identity.checkpoint_every) == ("runs/a", 0.5)


def test_without_a_rank_the_coordinator_numbers() -> None:
    assert read({**STRETTO, "STRETTO_RANK": ""}).rank is None


def test_torchrun_is_understood_and_its_first_agent_hosts_the_coordinator() -> None:
    identity = read({**TORCHRUN, "STRETTO_SECRET": SECRET})
    assert identity == Identity(
        rank=3, size=4, local_rank=1, coordinator="node1:29501", secret=SECRET, launcher="torchrun"
    )
    assert read({**TORCHRUN, "RANK": "0", "STRETTO_SECRET": SECRET}).hosts_coordinator


def test_torchrun_on_one_machine_needs_no_secret_and_all_agents_derive_the_same(runtime: str) -> None:
    here = {**TORCHRUN, "LOCAL_WORLD_SIZE": "4", "XDG_RUNTIME_DIR": runtime}
    secrets = {read({**here, "RANK": str(rank)}).secret for rank in range(4)}
    assert len(secrets) == 1
    assert read(here).coordinator == "127.0.0.1:29501"
    assert read({**here, "TORCHELASTIC_RUN_ID": "another"}).secret not in secrets


def test_slurm_is_understood_and_its_first_node_hosts_the_coordinator() -> None:
    identity = read({**SLURM, "STRETTO_SECRET": SECRET})
    assert identity.coordinator is not None
    host, port = addresses.split(identity.coordinator)
    assert host == "node03" and 15000 <= port < 30000
    assert (identity.rank, identity.size, identity.hosts_coordinator, identity.launcher) == (0, 6, True, "slurm")
    assert read({**SLURM, "SLURM_JOB_ID": "1234568", "STRETTO_SECRET": SECRET}).coordinator != identity.coordinator


def test_slurm_on_one_node_needs_no_secret(runtime: str) -> None:
    here = {**SLURM, "SLURM_JOB_NUM_NODES": "1", "XDG_RUNTIME_DIR": runtime}
    assert read(here).secret == read({**here, "SLURM_PROCID": "5"}).secret
    assert read(here).coordinator is not None and str(read(here).coordinator).startswith("127.0.0.1:")


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node[03-05,9],login1", "node03"),
        ("login1,node[03-05]", "login1"),
        ("rack[1-2]n[07,9]", "rack1n07"),
        ("a[9]", "a9"),
        ("gpu-17.cluster", "gpu-17.cluster"),
    ],
)
def test_the_first_host_of_a_nodelist(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


@given(st.text(alphabet="ab01[]-,. ", max_size=30))
@example("[")
@example("")
def test_any_nodelist_is_read_or_refused_in_words(nodelist: str) -> None:
    try:
        assert re.fullmatch(r"[\w.-]+", first_host(nodelist))
    except UsageError as e:
        assert "STRETTO_COORDINATOR" in str(e)


@pytest.mark.parametrize("environ", [STRETTO, TORCHRUN, SLURM], ids=["stretto", "torchrun", "slurm"])
def test_between_machines_a_secret_is_asked_for(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"same STRETTO_SECRET.*token_hex"):
        read({**environ, "STRETTO_SECRET": ""})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (STRETTO | {"STRETTO_SIZE": ""}, "STRETTO_SIZE is not set"),
        (STRETTO | {"STRETTO_COORDINATOR": ""}, "STRETTO_COORDINATOR is not set"),
        (STRETTO | {"STRETTO_COORDINATOR": "10.0.0.1"}, "is not an address; write host:port"),
        (STRETTO | {"STRETTO_RANK": "two"}, "STRETTO_RANK='two' is not a whole number"),
        (STRETTO | {"STRETTO_RANK": "-1"}, "STRETTO_RANK='-1' is not a whole number"),
        (STRETTO | {"STRETTO_RANK": "4"}, "agent 4 of 4; ranks are 0 to 3"),
        (STRETTO | {"STRETTO_RANK": "0", "STRETTO_SIZE": "0"}, "0 agents"),
        (STRETTO | {"STRETTO_MIN_AGENTS": "5"}, "STRETTO_MIN_AGENTS=5 of 4 agents; give 1 to 4"),
        (STRETTO | {"STRETTO_MIN_AGENTS": "0"}, "STRETTO_MIN_AGENTS=0 of 4 agents"),
        (STRETTO | {"STRETTO_CHECKPOINT_EVERY": "0"}, "'0' is not a number of seconds above 0"),
        (STRETTO | {"STRETTO_CHECKPOINT_EVERY": "often"}, "'often' is not a number of seconds above 0"),
        (STRETTO | {"STRETTO_SECRET": "short"}, "STRETTO_SECRET has 5 characters, at least 16"),
        ({"TORCHELASTIC_RUN_ID": "job", "RANK": "1"}, "WORLD_SIZE is not set"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "SLURM_JOB_ID is not set"),
    ],
)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(environ)


def test_a_secret_may_lie_in_a_file_that_nobody_else_can_read(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    environ = {k: v for k, v in STRETTO.items() if k != "STRETTO_SECRET"} | {"STRETTO_SECRET_FILE": str(file)}
    assert read(environ).secret == SECRET
    file.chmod(0o644)
    with pytest.raises(UsageError, match=r"others can read the secret in .*chmod 600"):
        read(environ)
    file.unlink()
    with pytest.raises(UsageError, match=r"cannot read the secret in .*No such file"):
        read(environ)


def test_a_derived_secret_is_kept_where_nobody_else_can_enter(runtime: str) -> None:
    assert job_secret("a", runtime) != job_secret("b", runtime)
    folder = Path(runtime, "stretto")
    assert [file.name for file in folder.iterdir()] == ["key"]
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "key").stat().st_mode & 0o777 == 0o600
    folder.chmod(0o755)
    with pytest.raises(UsageError, match="not a directory that only this user can enter"):
        job_secret("a", runtime)


def test_a_link_in_place_of_the_private_directory_is_refused(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", Path(runtime, "stretto"))
    with pytest.raises(UsageError, match="not a directory that only this user can enter"):
        job_secret("a", runtime)


# cluster.toml

CLUSTER = """
secret_file = "secret"

[[host]]
name = "a"
address = "203.0.113.1"
agents = 2

[[host]]
name = "b"
address = "127.0.0.1"
agents = 3
interface = "lo"
"""

SERVERS = """
[server]
s0 = "203.0.113.7:29500"
s1 = "203.0.113.7"
s2 = "127.0.0.1:29501"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_a_cluster_numbers_its_agents_through_its_hosts(tmp_path: Path) -> None:
    cluster = read_cluster(write(tmp_path, CLUSTER))
    assert cluster.size == 5
    assert (cluster.part("a"), cluster.part("b")) == (range(2), range(2, 5))
    assert cluster.coordinators == "203.0.113.1:29400,127.0.0.1:29400"
    assert cluster.machine("b") == Machine(Host("b", "127.0.0.1", 3, "lo"), {})
    assert cluster.secret_file == tmp_path / "secret"


def test_a_machine_finds_itself_in_the_cluster_by_its_addresses(tmp_path: Path) -> None:
    assert read_cluster(write(tmp_path, CLUSTER)).which().host == Host("b", "127.0.0.1", 3, "lo")
    with pytest.raises(UsageError, match="no host of the cluster has an address of this machine"):
        read_cluster(write(tmp_path, CLUSTER.replace("127.0.0.1", "203.0.113.2"))).which()
    with pytest.raises(UsageError, match="could be any of the hosts a, b"):
        read_cluster(write(tmp_path, CLUSTER.replace("203.0.113.1", "127.0.0.2"))).which()


def test_a_cluster_says_where_its_servers_are(tmp_path: Path) -> None:
    cluster = read_cluster(write(tmp_path, CLUSTER + SERVERS))
    assert cluster.servers[0] == Server("s0", "203.0.113.7", 29500)
    assert cluster.which() == cluster.machine("b") == cluster.machine("s2")
    assert cluster.which().posts == {2: 29501}
    assert cluster.machine("s1") == Machine(None, {0: 29500, 1: 0})
    alone = CLUSTER.replace('"127.0.0.1"', '"203.0.113.3"') + SERVERS
    assert read_cluster(write(tmp_path, alone)).which() == Machine(None, {2: 29501})


def test_a_server_takes_its_number_and_port_from_the_environment() -> None:
    env = {**STRETTO, "STRETTO_RANK": "", "STRETTO_SERVER": "7", "STRETTO_SERVERS": "8", "STRETTO_SERVER_PORT": "29500"}
    found = read_server(env)
    assert (found.rank, found.size, found.servers, found.serves, found.port) == (7, 4, 8, True, 29500)
    assert read_server({**env, "STRETTO_SERVER": ""}).rank is None
    with pytest.raises(UsageError, match="STRETTO_SERVER='x' is not a whole number"):
        read_server({**env, "STRETTO_SERVER": "x"})
    with pytest.raises(UsageError, match="STRETTO_SERVER_PORT=70000 is not a port"):
        read_server({**env, "STRETTO_SERVER_PORT": "70000"})
    with pytest.raises(UsageError, match="a server needs to know its run: set STRETTO_COORDINATOR"):
        read_server({})


def test_an_unknown_host_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    for ask in (read_cluster(write(tmp_path, CLUSTER)).part, read_cluster(write(tmp_path, CLUSTER)).machine):
        with pytest.raises(UsageError, match="no host is named 'c'; known: a, b"):
            ask("c")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("address", "adress", "no key of .*cluster.toml, host 1 is named 'adress'; did you mean address"),
        ("secret_file", "secretfile", "is named 'secretfile'; did you mean secret_file"),
        ('secret_file = "secret"', "", "lacks secret_file"),
        ('address = "203.0.113.1"', "", r"host 1 \(a\) lacks address"),
        ("agents = 3", "agents = 0", r"host 2 \(b\) has agents = 0"),
        ("agents = 3", 'agents = "3"', "agents = '3' should be of type int"),
        ("agents = 3", "agents = true", "agents = True should be of type int"),
        ('name = "b"', 'name = "a"', "several hosts named 'a'"),
        ('secret_file = "secret"', 'secret_file = "secret"\nport = 0', "port = 0 is not a port"),
        ('secret_file = "secret"', "secret_file = secret", "is not TOML"),
        ('s1 = "', 's0 = "', r"two of one name \(line \d+\); give each server its own name"),
        ("s1 = ", "a = ", "several machines named 'a'"),
        ('s1 = "203.0.113.7', 's1 = "203.0.113.7:29500', "servers s0 and s1 are both at 203.0.113.7:29500"),
        ("7:29500", "7:x", r"server s0: .*203.0.113.7:x"),
        ('s1 = "203.0.113.7"', "s1 = 7", 'server s1 = 7 is no address; write s1 = "HOST:PORT"'),
    ],
)
def test_what_is_wrong_in_a_cluster_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_cluster(write(tmp_path, (CLUSTER + SERVERS).replace(old, new, 1)))


def test_a_cluster_without_hosts_or_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no host"):
        read_cluster(write(tmp_path, 'secret_file = "secret"'))
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        read_cluster(tmp_path / "none.toml")
