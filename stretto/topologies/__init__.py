"""Who talks to whom, as data. A new topology is one file here and its line below."""

from stretto.topologies.auto import Auto
from stretto.topologies.butterfly import Butterfly
from stretto.topologies.double_tree import DoubleTree
from stretto.topologies.graph import Trees
from stretto.topologies.hierarchical import Hierarchical
from stretto.topologies.native import Native
from stretto.topologies.ring import Ring
from stretto.topologies.star import Star
from stretto.topologies.tree import Tree

__all__ = ["Auto", "Butterfly", "DoubleTree", "Hierarchical", "Native", "Ring", "Star", "Tree", "Trees"]
