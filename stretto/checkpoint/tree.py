"""State as facts and tensors: what ``state_dict()`` s hold as a JSON text and a list of tensors, and back, bit for bit.

Theory of operation. :func:`flatten` walks a tree of plain values. Tensors, and the bytes of arrays, go into a list, a
tensor once however often it occurs (tied parameters stay tied); everything else becomes JSON. What JSON says by itself
(None, bools, texts, lists, finite floats, ints below 2**53) is written as itself, all else as an object with one key:
``{"tuple": [1, 2]}``, ``{"float": "7ff0000000000000"}``, ``{"dict": [["lr", 0.1]]}``, ``{"tensor": 4}``. So people and
other programs can read the text, and reading it makes nothing but values: there is no code in it to run.

The facts begin with one entry a tensor: its name (the path at which it was met first), dtype and shape. Tensors that
fill their memory in another order than their dimensions' (channels last, transposed) keep it: the list has them as they
lie, ``order`` says how. Kernels choose their path by the strides, and not all paths round alike.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from stretto.errors import DataError, UsageError

DEEPEST: Final = 64
"""Containers within containers; one that holds itself is refused with this, too."""

_EXACT: Final = 2**53
_KINDS: Final = "biufcmM"
"""numpy's kinds of numbers: bool, int, uint, float, complex, timedelta, datetime."""


Length: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a state: where it was met, and what it is. ``order``: its dimensions, outermost in memory first."""

    name: str
    dtype: str
    shape: tuple[Length, ...]
    order: tuple[Length, ...] | None = None

    @property
    def laid(self) -> tuple[int, ...]:
        """The shape of the contiguous tensor in the list."""
        return self.shape if self.order is None else tuple(self.shape[d] for d in self.order)

    def empty(self) -> Tensor:
        """A tensor for the list, to read or receive into."""
        return torch.empty(self.laid, dtype=dtype_named(self.dtype))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * dtype_named(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype} {list(self.shape)})"


class Flat(NamedTuple):
    """A state: ``facts``, a JSON text, and its tensors, contiguous, in CPU memory, and not copied if they were so."""

    facts: bytes
    tensors: Sequence[Tensor]


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tensors: tuple[Entry, ...]
    tree: Any


def flatten(tree: Any) -> Flat:
    """The facts and tensors of a tree of dicts, lists, tuples, sets, numbers, texts, bytes, tensors and numpy values.

    Raises:
        UsageError: it holds something else; says where.
    """
    walk = _Walk()
    facts = _Facts(tensors=(), tree=walk.node(tree, "", 0))
    return Flat(msgspec.json.encode(msgspec.structs.replace(facts, tensors=tuple(walk.entries))), walk.tensors)


def restore(facts: bytes, tensors: Sequence[Tensor]) -> Any:
    """The tree that :func:`flatten` was given; its tensors are views of ``tensors``.

    Raises:
        DataError: the facts are damaged, or these are not their tensors.
    """
    found = _read(facts)
    if len(found.tensors) != len(tensors):
        raise DataError(f"this state has {len(found.tensors)} tensors, and {len(tensors)} were given")
    views = [_as_was(x, entry) for x, entry in zip(tensors, found.tensors, strict=True)]
    try:
        return _value(found.tree, views, 0)
    except (LookupError, TypeError, ValueError, OverflowError, struct.error) as e:
        raise DataError(f"the facts of this state are damaged: {e or type(e).__name__}") from e


def entries(facts: bytes) -> tuple[Entry, ...]:
    """What tensors a state has; raises :class:`DataError` where the facts are damaged."""
    return _read(facts).tensors


def digest(facts: bytes, tensors: Iterable[Tensor]) -> str:
    """A hash of everything in a state: names, dtypes, shapes, values and the tensors' bytes."""
    found = hashlib.blake2b(len(facts).to_bytes(8), digest_size=32)
    found.update(facts)
    for x in tensors:
        found.update(raw(x))
    return found.hexdigest()


def check(found: bytes, wanted: bytes, under: str = "model") -> None:
    """That facts ``found`` have the tensors of the facts ``wanted``, as far as their names begin with ``under``.

    Raises:
        DataError: names the first tensor that differs.
    """
    has, needs = (
        [e for e in entries(facts) if not under or re.match(re.escape(under) + r"[.\[]", e.name)]
        for facts in (found, wanted)
    )
    other = "this is another model's; name another place, or build the model that was saved"
    for here, there in zip(needs, has, strict=False):
        if (here.name, here.dtype, here.shape) != (there.name, there.dtype, there.shape):
            raise DataError(f"the checkpoint has {there} where this model has {here}: {other}")
    if len(has) != len(needs):
        longer, which = (has, "the checkpoint") if len(has) > len(needs) else (needs, "this model")
        raise DataError(f"only {which} has {longer[min(len(has), len(needs))]}: {other}")


def raw(x: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, in place."""
    flat: np.ndarray[Any, Any] = x.detach().flatten().view(torch.uint8).numpy()
    return flat.data


def dtype_named(name: str) -> torch.dtype:
    """``torch.float32`` for ``"float32"``; raises :class:`DataError` for what this torch does not know."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise DataError(f"torch {torch.__version__} has no dtype {name!r}; a newer torch may have written this")
    return found


class _Walk:
    """One :func:`flatten` under way."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.entries: list[Entry] = []
        self._known: dict[Any, int] = {}
        self._names: set[str] = set()

    def node(self, x: Any, path: str, depth: int) -> Any:
        if depth > DEEPEST:
            raise UsageError(f"{path[:80]}… is nested deeper than {DEEPEST}; does it contain itself?")
        kind = type(x)
        if kind in _PLAIN:
            return _PLAIN[kind](x)
        if kind in (dict, OrderedDict, Counter):
            return self._mapping(x, path, depth)
        if kind in (list, tuple):
            items = [self.node(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(x)]
            return items if kind is list else {"tuple": items}
        if kind in (set, frozenset):
            items = [self.node(v, f"{path}{{}}", depth + 1) for v in x]
            return {kind.__name__: sorted(items, key=msgspec.json.encode)}
        if kind in (Tensor, nn.Parameter):
            return {"tensor": self._tensor(x, path)}
        if kind is np.ndarray and x.dtype.kind in _KINDS:
            number = self._add(torch.from_numpy(np.array(x, order="C").reshape(-1).view(np.uint8)), path)
            return {"array": [number, x.dtype.str, list(x.shape)]}
        if isinstance(x, np.generic) and x.dtype.kind in _KINDS:
            return {"scalar": [x.dtype.str, x.tobytes().hex()]}
        what = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else f"a {kind.__qualname__}"
        raise UsageError(
            f"{path or 'the state'} is {what}, and a checkpoint holds only dicts, lists, tuples, sets, numbers, texts, "
            "bytes, tensors and arrays of numbers; leave it out of the state_dict, or say it with those"
        )

    def _mapping(self, x: dict[Any, Any], path: str, depth: int) -> Any:
        pairs = []
        for key, value in x.items():
            if type(key) not in _PLAIN:
                raise UsageError(f"{path or 'the state'} has a {type(key).__qualname__} as a key: {str(key)[:80]}")
            pairs.append([_PLAIN[type(key)](key), self.node(value, _join(path, key), depth + 1)])
        node = {type(x).__name__: pairs}
        if type(x) is OrderedDict and "_metadata" in vars(x):  # nn.Module keeps the versions of its modules' state here
            node["metadata"] = self.node(vars(x)["_metadata"], f"{path}._metadata", depth + 1)
        return node

    def _tensor(self, x: Tensor, path: str) -> int:
        if x.layout != torch.strided or x.is_quantized or x.is_meta:
            what = "quantized" if x.is_quantized else "on the meta device" if x.is_meta else "sparse"
            raise UsageError(f"{path or 'the state'} is a tensor that is {what}; a checkpoint holds dense ones")
        # state_dict() makes a new tensor of each parameter, also of tied ones: the same memory says that they are one.
        lies = (x.untyped_storage().data_ptr(), x.storage_offset(), x.shape, x.stride(), x.dtype, x.device)
        key = (*lies, x.is_conj(), x.is_neg()) if x.numel() else id(x)
        if key not in self._known:
            self._known[key] = self._add(x.detach().resolve_conj().resolve_neg().cpu(), path)
        return self._known[key]

    def _add(self, x: Tensor, path: str) -> int:
        number, order = len(self.tensors), _memory_order(x)
        name = path if path and path not in self._names else f"{path}#{number}"
        self._names.add(name)
        self.entries.append(Entry(name, str(x.dtype).removeprefix("torch."), tuple(x.shape), order))
        self.tensors.append(x.contiguous() if order is None else x.permute(order))
        return number


def _memory_order(x: Tensor) -> tuple[int, ...] | None:
    """The dimensions of a tensor that fills its memory in another order than theirs, outermost first; else None."""
    if x.is_contiguous():
        return None
    strides = x.stride()
    order = tuple(sorted(range(x.dim()), key=lambda d: (-strides[d], d)))
    return order if x.permute(order).is_contiguous() else None


def _as_was(x: Tensor, entry: Entry) -> Tensor:
    if tuple(x.shape) != entry.laid or x.dtype != dtype_named(entry.dtype):
        raise DataError(f"tensor {entry} was given as {x.dtype} {list(x.shape)}")
    if entry.order is None:
        return x
    return x.permute(sorted(range(x.dim()), key=entry.order.__getitem__))


def _join(path: str, key: Any) -> str:
    if isinstance(key, str) and re.fullmatch(r"[\w.]+", key):
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def _int(x: int) -> Any:
    return x if -_EXACT < x < _EXACT else {"int": hex(x)}


def _float(x: float) -> Any:
    return x if x - x == 0 else {"float": struct.pack(">d", x).hex()}


def _str(x: str) -> Any:
    try:
        x.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as in names of files that are not UTF-8
        return {"str": base64.b64encode(x.encode("utf-16-le", "surrogatepass")).decode()}
    return x


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    type(None): lambda x: x,
    bool: lambda x: x,
    int: _int,
    float: _float,
    str: _str,
    bytes: lambda x: {"bytes": base64.b64encode(x).decode()},
    torch.dtype: lambda x: {"dtype": str(x).removeprefix("torch.")},
    torch.Size: lambda x: {"size": list(x)},
}


def _read(facts: bytes) -> _Facts:
    try:
        found = msgspec.json.decode(facts, type=_Facts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DataError(f"the facts of this state are damaged: {e}") from e
    for t in found.tensors:
        if t.order is not None and sorted(t.order) != list(range(len(t.shape))):
            raise DataError(f"the facts of this state are damaged: {t.name[:80]} cannot lie in the order {t.order}")
    return found


def _value(node: Any, tensors: Sequence[Tensor], depth: int) -> Any:
    """What a node says; whatever is wrong with it is an error of any of the kinds that :func:`restore` translates."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    if isinstance(node, list):
        return [_value(v, tensors, depth + 1) for v in node]
    if not isinstance(node, dict):
        return node
    if len(node) != 1 and set(node) != {"OrderedDict", "metadata"}:
        raise ValueError(f"no value has the keys {sorted(node)[:4]}")
    kind = next(iter(node))
    if kind in _MAPPINGS:
        pairs = [(_value(k, tensors, depth + 1), _value(v, tensors, depth + 1)) for k, v in node[kind]]
        mapping = _MAPPINGS[kind](pairs)
        if "metadata" in node:
            vars(mapping)["_metadata"] = _value(node["metadata"], tensors, depth + 1)
        return mapping
    if kind in _FROM_ITEMS:
        return _FROM_ITEMS[kind](_value(v, tensors, depth + 1) for v in node[kind])
    if kind == "tensor":
        return tensors[_number(node[kind], tensors)]
    if kind == "array":
        number, dtype, shape = node[kind]
        flat = np.frombuffer(raw(tensors[_number(number, tensors)]), _numpy_dtype(dtype))
        return flat.reshape(shape).copy()
    return _FROM_TEXT[kind](node[kind])


def _number(x: Any, tensors: Sequence[Tensor]) -> int:
    if type(x) is not int or not 0 <= x < len(tensors):
        raise ValueError(f"there is no tensor {x!r}")
    return x


def _numpy_dtype(text: Any) -> np.dtype[Any]:
    found = np.dtype(text) if isinstance(text, str) else None
    if found is None or found.kind not in _KINDS:
        raise ValueError(f"{text!r} is no kind of number")
    return found


def _scalar(x: Any) -> np.generic:
    dtype, value = x
    made: np.generic = np.frombuffer(bytes.fromhex(value), _numpy_dtype(dtype), count=1)[0]
    return made


def _size(x: Any) -> torch.Size:
    return torch.Size(x)


_MAPPINGS: Final[dict[str, Callable[[Any], dict[Any, Any]]]] = {
    "dict": dict,
    "OrderedDict": OrderedDict,
    "Counter": lambda pairs: Counter(dict(pairs)),
}
_FROM_ITEMS: Final[dict[str, Callable[[Any], Any]]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_FROM_TEXT: Final[dict[str, Callable[[Any], Any]]] = {
    "int": lambda x: int(x, 16),
    "float": lambda x: struct.unpack(">d", bytes.fromhex(x))[0],
    "str": lambda x: base64.b64decode(x, validate=True).decode("utf-16-le", "surrogatepass"),
    "bytes": lambda x: base64.b64decode(x, validate=True),
    "dtype": dtype_named,
    "size": _size,
    "scalar": _scalar,
}
