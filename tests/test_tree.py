"""State as facts and tensors: whatever a state_dict holds comes back bit for bit, and nothing else gets in."""

from __future__ import annotations

import itertools
import math
import random
import struct
from collections import Counter, OrderedDict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stretto.checkpoint import rng
from stretto.checkpoint.tree import DEEPEST, Flat, check, digest, entries, flatten, raw, restore
from stretto.errors import DataError, UsageError

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]


def bits(x: Any) -> Any:
    """A value that is equal to another's only if both are the same to the bit, and of the same types."""
    if isinstance(x, Tensor):
        laid = x.detach().contiguous().flatten().view(torch.uint8).tolist() if x.numel() else []
        return ("tensor", str(x.dtype), tuple(x.shape), laid)
    if isinstance(x, np.ndarray | np.generic):
        return (type(x).__name__, x.dtype.str, x.shape, x.tobytes())
    if isinstance(x, float):
        return ("float", struct.pack(">d", x))
    if isinstance(x, dict):
        return (type(x).__name__, [(bits(k), bits(v)) for k, v in x.items()])
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        return (type(x).__name__, [bits(v) for v in x])
    if isinstance(x, set | frozenset):
        return (type(x).__name__, sorted((bits(v) for v in x), key=repr))
    return (type(x).__name__, x)


def there_and_back(tree: Any) -> Any:
    flat = flatten(tree)
    return restore(flat.facts, [x.clone() for x in flat.tensors])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 2**16))
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), generator=torch.Generator().manual_seed(seed))
    x = raw.to(torch.uint8).view(dtype).view(shape)
    return x.permute(draw(st.permutations(range(len(shape)))))


texts = st.text(st.characters(exclude_categories=()), max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    texts,
    st.binary(max_size=8),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 9), max_size=3).map(torch.Size),
)
numpys = st.one_of(
    st.floats().map(np.float64),
    st.integers(0, 255).map(np.uint8),
    st.booleans().map(np.bool_),
    st.lists(st.floats(width=32), max_size=5).map(lambda v: np.array(v, ">f4")),
    st.just(np.datetime64("2026-01-01", "s")),
    st.just(np.zeros((2, 0, 3), np.int16)),
)
keys = st.one_of(texts, st.integers(), st.none(), st.floats(allow_nan=False), st.binary(max_size=3))
trees = st.recursive(
    st.one_of(scalars, numpys, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
        st.dictionaries(keys, st.integers(0, 9), max_size=4).map(Counter),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    ),
    max_leaves=12,
)


@given(trees)
def test_every_tree_comes_back_bit_for_bit(tree: Any) -> None:
    assert bits(there_and_back(tree)) == bits(tree)


@given(trees)
def test_facts_and_bytes_are_enough_to_rebuild_a_tree_elsewhere(tree: Any) -> None:
    flat = flatten(tree)
    received = [e.empty() for e in entries(flat.facts)]
    for entry, x, sent in zip(entries(flat.facts), received, flat.tensors, strict=True):
        assert entry.nbytes == len(raw(sent))
        raw(x)[:] = raw(sent)
    assert bits(restore(flat.facts, received)) == bits(tree)


@given(trees)
def test_the_same_tree_gives_the_same_facts_and_digest(tree: Any) -> None:
    one, other = flatten(tree), flatten(there_and_back(tree))
    assert one.facts == other.facts
    assert digest(*one) == digest(*other)


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 2.0**53, 1e22])
def test_odd_floats_keep_their_bits(value: float) -> None:
    assert bits(there_and_back(value)) == bits(value)


def test_a_nan_keeps_its_payload() -> None:
    odd = struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))[0]
    assert bits(there_and_back([odd, -odd])) == bits([odd, -odd])


@pytest.mark.parametrize("value", [2**53 - 1, 2**53, -(2**64), 1 << 9999], ids=lambda x: str(x.bit_length()))
def test_ints_of_any_size_come_back(value: int) -> None:
    assert there_and_back(value) == value


def test_tensors_keep_the_order_in_which_they_fill_memory_and_are_not_copied() -> None:
    plain = torch.randn(2, 3, 4, 5)
    for x in (plain, plain.to(memory_format=torch.channels_last), plain.permute(3, 1, 0, 2), plain[0, 0].t()):
        flat = flatten(x)
        assert flat.tensors[0].is_contiguous() and flat.tensors[0].data_ptr() == x.data_ptr()
        back = restore(*flat)
        assert back.stride() == x.stride() and torch.equal(back, x)


def test_views_with_holes_and_overlaps_are_laid_out() -> None:
    x = torch.arange(12.0).view(3, 4)
    for view in (x[:, ::2], x[:1].expand(5, 4), x[1:, 1:], torch.view_as_complex(x.view(6, 2)).conj()):
        assert torch.equal(there_and_back(view), view)


def test_tied_parameters_stay_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    flat = flatten({"model": model.state_dict(), "again": model[0].weight})
    assert len(flat.tensors) == 1
    back = restore(*flat)
    assert back["model"]["0.weight"] is back["model"]["1.weight"] is back["again"]


def test_different_views_of_one_memory_stay_two() -> None:
    x = torch.arange(4.0)
    back = there_and_back([x[:2], x[2:], x.view(2, 2), x.view(torch.int32)])
    assert [b.tolist() for b in back[:3]] == [[0, 1], [2, 3], [[0, 1], [2, 3]]] and back[3].dtype == torch.int32


def optimizers(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True),
        torch.optim.AdamW(parameters, torch.tensor(0.01), amsgrad=True),
        torch.optim.RMSprop(parameters, centered=True),
        torch.optim.Adagrad(parameters),
    ]


def schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    s = torch.optim.lr_scheduler
    warm = s.LinearLR(optimizer)
    return [
        s.MultiStepLR(optimizer, [3, 3, 7]),
        s.LambdaLR(optimizer, lambda step: 0.5**step),
        s.OneCycleLR(optimizer, 0.1, 100, cycle_momentum=False),
        s.ReduceLROnPlateau(optimizer),
        s.SequentialLR(optimizer, [warm, s.CosineAnnealingLR(optimizer, 9)], [4]),
    ]


@pytest.mark.parametrize("number", range(4))
def test_optimizers_and_schedulers_go_on_as_if_nothing_had_been(number: int) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, list[Any]]:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        model = model.to(memory_format=torch.channels_last)
        optimizer = optimizers(list(model.parameters()))[number]
        return model, optimizer, schedulers(optimizer)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, plans: list[Any]) -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 1, 3, 3)).square().sum().backward()
        optimizer.step()
        for plan in plans:
            plan.step(*([1.0] if isinstance(plan, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))

    def state(model: nn.Module, optimizer: torch.optim.Optimizer, plans: list[Any]) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedulers": [p.state_dict() for p in plans],
            "random": rng.capture(),
        }

    one, other = make(), make()
    for _ in range(3):
        step(*one)
    saved = there_and_back(state(*one))
    step(*one)
    other[0].load_state_dict(saved["model"])
    other[1].load_state_dict(saved["optimizer"])
    for plan, values in zip(other[2], saved["schedulers"], strict=True):
        plan.load_state_dict(values)
    rng.replay(saved["random"])
    step(*other)
    assert digest(*flatten(state(*one))) == digest(*flatten(state(*other)))
    assert saved["model"]._metadata == one[0].state_dict()._metadata


def test_random_generators_draw_the_same_again() -> None:
    def draw() -> list[Any]:
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)]

    random.gauss(0, 1)
    states = there_and_back(rng.capture())
    first = draw()
    rng.replay(states)
    assert draw() == first


def test_damaged_states_of_generators_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="random generators are damaged"):
        rng.replay({"torch": torch.zeros(3)})


class Odd:
    pass


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"optimizer": {"state": {3: {"hook": print}}}}, r"optimizer\.state\[3\]\.hook is a builtin_function"),
        ({"a": [1, Odd()]}, r"a\[1\] is a Odd"),
        (lambda: 0, "the state is a function"),
        ({"x": np.array([None])}, "x is an array of object"),
        ({"x": torch.eye(2).to_sparse()}, "x is a tensor that is sparse"),
        ({"x": torch.empty(2, device="meta")}, "x is a tensor that is on the meta device"),
        ({"x": {(1, 2): 3}}, "x has a tuple as a key"),
        ({"odd key": {"y": 1j}}, r"\['odd key'\]\.y is a complex"),
    ],
)
def test_what_no_checkpoint_holds_is_refused_with_its_path(tree: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        flatten(tree)


def test_what_contains_itself_is_refused() -> None:
    tree: list[Any] = []
    tree.append(tree)
    with pytest.raises(UsageError, match=f"deeper than {DEEPEST}; does it contain itself"):
        flatten(tree)


def test_the_deepest_tree_that_is_taken_comes_back() -> None:
    tree: Any = 1
    for _ in range(DEEPEST):
        tree = {"x": (tree,)} if isinstance(tree, int) else [tree]
    with pytest.raises(UsageError, match="deeper"):
        flatten(tree)
    assert there_and_back(tree[0]) == tree[0]


@given(trees, st.data())
def test_damaged_facts_are_refused_in_words_or_say_something_else(tree: Any, data: st.DataObject) -> None:
    flat = flatten(tree)
    at = data.draw(st.integers(0, len(flat.facts) - 1))
    text = bytearray(flat.facts)
    text[at] = data.draw(st.integers(0, 255))
    try:
        restore(bytes(text), flat.tensors)
    except DataError as e:
        assert len(str(e)) > 20


@pytest.mark.parametrize(
    "node",
    [
        {"tensor": 0},
        {"tensor": -1},
        {"tensor": True},
        {"array": [0, "<f4", [1]]},
        {"array": 3},
        {"scalar": ["O", "00"]},
        {"scalar": ["<f8", ""]},
        {"scalar": ["<f8", "zz"]},
        {"int": "12g"},
        {"int": 7},
        {"float": "00"},
        {"float": None},
        {"bytes": "?"},
        {"str": "AA=="},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"dict": 5},
        {"set": [[]]},
        {"dtype": "nn"},
        {"dtype": 3},
        {"size": ["a"]},
        {"unheard": 1},
        {"dict": [], "set": []},
        {},
        {"metadata": [], "OrderedDict": []},
    ],
)
def test_facts_that_say_nothing_sensible_are_refused(node: Any) -> None:
    with pytest.raises(DataError):
        restore(msgspec.json.encode({"tensors": [], "tree": [node]}), [])


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"tensors":[],"tree":' + b"[" * 90])
def test_texts_that_are_no_facts_are_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="damaged"):
        restore(text, [])


def test_facts_too_deep_to_be_ours_are_refused() -> None:
    deep = b"[" * 200 + b"]" * 200
    with pytest.raises(DataError, match=r"damaged.*nested"):
        restore(b'{"tensors":[],"tree":' + deep + b"}", [])


def test_other_tensors_than_the_facts_name_are_refused() -> None:
    flat = flatten({"w": torch.zeros(2, 3)})
    for tensors, words in (
        ([], "has 1 tensors, and 0 were given"),
        ([torch.zeros(3, 2)], r"w \(float32 \[2, 3\]\) was given as torch.float32 \[3, 2\]"),
        ([torch.zeros(2, 3, dtype=torch.float64)], "was given as torch.float64"),
    ):
        with pytest.raises(DataError, match=words):
            restore(flat.facts, tensors)


def test_tensors_are_named_by_the_path_where_they_were_met_first_and_no_name_twice() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    flat = flatten(
        {"model": {"fc.weight": x}, "state": {0: {"m": torch.ones(2), "again": x}}, "a.b": y, "a": {"b": -y}}
    )
    assert [e.name for e in entries(flat.facts)] == ["model.fc.weight", "state[0].m", "a.b", "a.b#3"]


def test_a_digest_sees_every_bit_and_every_name() -> None:
    def of(tree: Any) -> str:
        return digest(*flatten(tree))

    x = torch.zeros(4)
    trees = [{"x": x}, {"y": x}, {"x": -x}, {"x": x.view(2, 2)}, {"x": x.int()}, {"x": x, "y": 1}, {"x": x, "y": 1.0}]
    assert len({of(t) for t in trees}) == len(trees)


def model_facts(*sizes: int, bias: bool = True) -> bytes:
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(sizes)]
    model = nn.Sequential(*layers)
    return flatten({"model": model.state_dict(), "extra": torch.zeros(len(sizes))}).facts


def test_a_checkpoint_of_the_same_model_passes_whatever_lies_beside_it() -> None:
    check(model_facts(2, 3, 4), flatten({"model": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)).state_dict()}).facts)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (model_facts(2, 5, 4), r"model\.0\.weight \(float32 \[5, 2\]\) where this model has model\.0\.weight"),
        (model_facts(2, 3), r"only this model has model\.1\.weight"),
        (model_facts(2, 3, 4, 5), r"only the checkpoint has model\.2\.weight"),
        (model_facts(2, 3, 4, bias=False), r"model\.1\.weight .* where this model has model\.0\.bias"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_at_the_first_tensor_that_differs(found: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        check(found, model_facts(2, 3, 4))


def test_a_flat_state_is_a_pair() -> None:
    facts, tensors = flatten([torch.zeros(1)])
    assert restore(*Flat(facts, tensors))[0].tolist() == [0.0]
