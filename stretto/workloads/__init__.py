"""Small real tasks to try a strategy on; ``get("digits")`` is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn import functional
from torch.optim import Adagrad

from stretto.errors import UnknownName
from stretto.workloads import digits, mnist, recommender, shakespeare
from stretto.workloads.download import locate
from stretto.workloads.factors import Factors
from stretto.workloads.gpt import GPT
from stretto.workloads.models import RowLSTM, cnn, mlp
from stretto.workloads.workload import Data, Split, Workload

__all__ = ["WORKLOADS", "Data", "Split", "Workload", "get"]

_small: dict[str, Callable[[], nn.Module]] = {
    "mlp": partial(mlp, digits.SIDE),
    "cnn": partial(cnn, digits.SIDE),
    "lstm": partial(RowLSTM, digits.SIDE),
}
_large: dict[str, Callable[[], nn.Module]] = {
    "mlp": partial(mlp, mnist.SIDE, width=256),
    "cnn": partial(cnn, mnist.SIDE),
    "lstm": partial(RowLSTM, mnist.SIDE),
    "mlp-10m": partial(mlp, mnist.SIDE, width=2048, depth=3),
}

WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            name="digits",
            about="1,437 handwritten digits of 8 x 8 pixels; they ship with scikit-learn",
            find=digits.find,
            load=digits.load,
            samples=digits.TRAINING,
            models=_small,
            usual="cnn",
            loss=functional.cross_entropy,
            lr=3e-3,
            batch_size=128,
            epochs=20,
        ),
        Workload(
            name="fashion-mnist",
            about="60,000 articles of clothing of 28 x 28 pixels",
            find=partial(locate, mnist.FASHION),
            load=partial(mnist.load, source=mnist.FASHION),
            samples=mnist.TRAINING,
            models=_large,
            usual="cnn",
            loss=functional.cross_entropy,
            lr=1e-3,
            batch_size=128,
            epochs=2,
        ),
        Workload(
            name="mnist",
            about="60,000 handwritten digits of 28 x 28 pixels",
            find=partial(locate, mnist.MNIST),
            load=partial(mnist.load, source=mnist.MNIST),
            samples=mnist.TRAINING,
            models=_large,
            usual="cnn",
            loss=functional.cross_entropy,
            lr=1e-3,
            batch_size=128,
            epochs=2,
        ),
        Workload(
            name="shakespeare",
            about="1,115,394 characters of Shakespeare's plays, to go on with one by one",
            find=partial(locate, shakespeare.SHAKESPEARE),
            load=shakespeare.load,
            samples=shakespeare.TRAINING,
            models={"gpt": partial(GPT, shakespeare.VOCABULARY, shakespeare.CONTEXT)},
            usual="gpt",
            loss=shakespeare.loss,
            lr=1e-3,
            batch_size=64,
            epochs=2,
        ),
        Workload(
            name="recommender",
            about="400,000 ratings of 1,000 items by 1,000 users, made up; or MovieLens's u.data",
            find=recommender.find,
            load=recommender.load,
            samples=recommender.TRAINING,
            models={
                "factors": partial(Factors, users=recommender.USERS, items=recommender.ITEMS, rank=recommender.RANK)
            },
            usual="factors",
            loss=functional.mse_loss,
            lr=0.1,
            batch_size=512,
            epochs=6,
            rule=Adagrad,
            right=recommender.close,
            squared=True,
            made=True,
            tables=True,
        ),
    )
}


def get(name: str) -> Workload:
    """The workload of that name.

    Raises:
        UnknownName: there is none; the message offers the nearest.
    """
    if name not in WORKLOADS:
        raise UnknownName("workload", name, WORKLOADS)
    return WORKLOADS[name]
