"""Who mixes with whom, and by which weights, as data. A new graph is one file here and its line below."""

from stretto.graphs.complete import Complete
from stretto.graphs.directed import DirectedExponential, DirectedRing
from stretto.graphs.exponential import Exponential
from stretto.graphs.given import Given
from stretto.graphs.matching import Matching
from stretto.graphs.one_peer import OnePeer
from stretto.graphs.peers import Peers, Row, matrix, spectral_gap
from stretto.graphs.random_push import RandomPush
from stretto.graphs.ring import Ring
from stretto.graphs.torus import Torus
from stretto.graphs.weights import Weights

__all__ = [
    "Complete",
    "DirectedExponential",
    "DirectedRing",
    "Exponential",
    "Given",
    "Matching",
    "OnePeer",
    "Peers",
    "RandomPush",
    "Ring",
    "Row",
    "Torus",
    "Weights",
    "matrix",
    "spectral_gap",
]
