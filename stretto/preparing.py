"""What ``prepare()`` does with what it is given, before the first step: check, describe, make alike."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stretto.codecs import Identity, PerLayer
from stretto.core import LayerRole, Named, Strategy
from stretto.errors import UsageError
from stretto.exchanges import AllReduce
from stretto.topologies import Auto, Native

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@runtime_checkable
class Stateful(Protocol):
    """A scheduler, a scaler, or anything else whose state a newcomer and a checkpoint need."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def check(objects: Sequence[Any], buffers: str, prepared: Sequence[nn.Module]) -> None:
    """That these can be exchanged, beside the models that were ``prepared`` before.

    Raises:
        UsageError: something here cannot; says what.
    """
    models = [o for o in objects if isinstance(o, nn.Module)]
    for o in objects:
        if not isinstance(o, nn.Module | Optimizer | Stateful):
            raise UsageError(
                f"prepare takes models, optimizers and what else has a state_dict() and load_state_dict(), "
                f"not a {type(o).__name__}"
            )
    if not models:
        raise UsageError("prepare was given no model")
    if buffers not in ("mean", "broadcast", "local"):
        raise UsageError(f"buffers={buffers!r}: say 'mean', 'broadcast' or 'local'")
    known = {id(p) for m in prepared for p in m.parameters()}
    for model in models:
        for name, p in model.named_parameters():
            if id(p) in known:
                raise UsageError(f"parameter {name} was prepared before; prepare models that share it in one call")
            if p.device.type != "cpu":
                raise UsageError(
                    f"parameter {name} is on {p.device}; this version exchanges CPU memory: move the model to cpu"
                )
            if p.dtype not in _DTYPES:
                raise UsageError(f"parameter {name} is {p.dtype}; float32, float64, float16 and bfloat16 are exchanged")
    ours = {id(p) for m in models for p in m.parameters()} | known
    for optimizer in (o for o in objects if isinstance(o, Optimizer)):
        for g in optimizer.param_groups:
            if any(id(p) not in ours for p in g["params"]):
                raise UsageError(
                    f"this {type(optimizer).__name__} holds parameters of no prepared model: pass that "
                    "model too, or its gradients would differ between agents"
                )


def is_native(strategy: Strategy) -> bool:
    """Does shared memory itself do this strategy's averages?"""
    exchange = strategy.exchange
    along_own = isinstance(exchange, AllReduce) and isinstance(exchange.topology, Native | Auto)
    return along_own and strategy.codec == Identity()


def check_native(strategy: Strategy, link: str, size: int) -> None:
    """That the link has the all-reduce that the strategy asks for; raises :class:`UsageError`."""
    exchange = strategy.exchange
    topology = exchange.topology if isinstance(exchange, AllReduce) else None
    if isinstance(topology, Native) and link not in ("shm", "c10d") and size > 1:
        raise UsageError(
            f"{strategy} asks for an all-reduce of the link's own, and the {link} link has none: "
            "use link shm or c10d, or another topology"
        )


def check_names(strategy: Strategy, models: Sequence[nn.Module]) -> None:
    """That every pattern of names in the strategy fits a parameter; raises :class:`UsageError`."""
    for part in _within(strategy):
        if isinstance(part, PerLayer):
            part.check(named(models).values())


def _within(value: Any) -> Iterator[Any]:
    """A value, and all that it is made of."""
    yield value
    if dataclasses.is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    for part in value if isinstance(value, tuple) else ():
        yield from _within(part)


def describe(models: Sequence[nn.Module], optimizers: Sequence[Optimizer], strategy: Strategy, buffers: str) -> str:
    """What all agents must have alike, a line each."""
    lines = [f"torch {torch.__version__}", f"strategy {strategy}", f"buffers {buffers}"]
    for i, model in enumerate(models):
        lines += [
            f"model {i} {k} {tuple(v.shape)} {v.dtype}" for k, v in model.state_dict().items() if isinstance(v, Tensor)
        ]
        lines += [f"model {i} {k} requires_grad={p.requires_grad}" for k, p in model.named_parameters()]
    lines += [f"optimizer {type(o).__name__} with {[len(g['params']) for g in o.param_groups]}" for o in optimizers]
    return "\n".join(lines)


def alike(model: nn.Module, shared: Mapping[int, Tensor]) -> dict[str, Any]:
    """Its state, with what all have alike (by ``id`` of parameter or buffer) in place of our own."""
    found = dict(model.state_dict())
    for named_tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        found |= {name: shared[id(x)] for name, x in named_tensors if id(x) in shared and name in found}
    return found


def alike_part(part: Any, local: bool) -> Any:
    """The state of an optimizer or scheduler; of what is ``local`` what all have alike, None where that is nothing."""
    if not local:
        return part.state_dict()
    return {"state": {}, "param_groups": part.state_dict()["param_groups"]} if isinstance(part, Optimizer) else None


def named(models: Sequence[nn.Module]) -> dict[int, Named]:
    """Every parameter by ``id``: its name (with the model's number, where there are several), shape and role."""
    found: dict[int, Named] = {}
    for i, model in enumerate(models):
        for path, module in model.named_modules():
            for name, p in module.named_parameters(recurse=False):
                words = [str(i)] if len(models) > 1 else []
                words += [path, name] if path else [name]
                found.setdefault(id(p), Named(".".join(words), tuple(p.shape), _role(module, name)))
    return found


def _role(module: nn.Module, name: str) -> LayerRole:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, _NORMS):
        return "norm"
    return "bias" if "bias" in name else "weight"


def digest(models: Sequence[nn.Module]) -> str:
    """A hash of parameters and buffers: equal digests are equal bits."""
    found = hashlib.blake2b(digest_size=16)
    for model in models:
        for name, x in sorted(model.state_dict().items()):
            found.update(name.encode())
            if isinstance(x, Tensor):
                found.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def spread(models: Sequence[nn.Module], room: Tensor, broadcast: Callable[[Tensor], None]) -> None:
    """The first agent's weights and buffers become everybody's, through ``room`` (uint8)."""
    state = [x for m in models for x in m.state_dict().values() if isinstance(x, Tensor) and x.numel()]
    raw = [x.contiguous().view(-1).view(torch.uint8) for x in state]
    for parts in _batches(raw, len(room)):
        sizes = [len(p) for p in parts]
        filled = room[: sum(sizes)]
        torch.cat(parts, out=filled)
        broadcast(filled)
        for part, agreed in zip(parts, filled.split(sizes), strict=True):
            part.copy_(agreed)
    for x, bits in zip(state, raw, strict=True):
        if x.data_ptr() != bits.data_ptr():
            x.copy_(bits.view(x.dtype).view_as(x))


def _batches(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Pieces of byte tensors, in order, in lists of at most ``most`` bytes together."""
    batch: list[Tensor] = []
    room = most
    for x in tensors:
        at = 0
        while at < len(x):
            piece = x[at : at + room]
            batch.append(piece)
            at += len(piece)
            room -= len(piece)
            if not room:
                yield batch
                batch, room = [], most
    if batch:
        yield batch
