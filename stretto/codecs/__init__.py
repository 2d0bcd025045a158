"""How a tensor is written on the wire. A new codec is one file here and its line below."""

from stretto.codecs.identity import Identity

__all__ = ["Identity"]
