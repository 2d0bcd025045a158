"""The random generators of a process as values: torch's, numpy's and Python's own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from stretto.errors import DataError


def capture() -> dict[str, Any]:
    """The states of the global generators, a tree that :func:`stretto.checkpoint.tree.flatten` takes."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }


def replay(states: dict[str, Any]) -> None:
    """Set the global generators to what :func:`capture` saw: they draw the same numbers again.

    Raises:
        DataError: these are no states of generators.
    """
    try:
        torch.set_rng_state(states["torch"])
        if states["cuda"]:
            torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
        np.random.set_state(states["numpy"])
        random.setstate(states["python"])
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise DataError(f"the states of the random generators are damaged: {e}") from e
