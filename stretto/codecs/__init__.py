"""How a tensor is written on the wire. A new codec is one file here and its line below."""

from stretto.codecs.cast import Bf16, Fp16
from stretto.codecs.chain import Chain
from stretto.codecs.dct_topk import DctTopK
from stretto.codecs.feedback import Feedback
from stretto.codecs.fp8 import Fp8
from stretto.codecs.identity import Identity
from stretto.codecs.integers import Int2, Int4, Int8
from stretto.codecs.lowrank import LowRank
from stretto.codecs.natural import Natural
from stretto.codecs.per_layer import PerLayer
from stretto.codecs.randomk import RandomK
from stretto.codecs.sign import Sign
from stretto.codecs.ternary import Ternary
from stretto.codecs.threshold import Threshold
from stretto.codecs.topk import TopK

__all__ = [
    "Bf16",
    "Chain",
    "DctTopK",
    "Feedback",
    "Fp8",
    "Fp16",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "LowRank",
    "Natural",
    "PerLayer",
    "RandomK",
    "Sign",
    "Ternary",
    "Threshold",
    "TopK",
]
