"""How a run begins: identities from the environment, clusters from a file, agents as processes."""

from stretto.launch.cluster import Cluster, Host, read_cluster
from stretto.launch.environment import Identity, read
from stretto.launch.supervise import Care, run_agents

__all__ = ["Care", "Cluster", "Host", "Identity", "read", "read_cluster", "run_agents"]
