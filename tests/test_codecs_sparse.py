"""What is special to codecs that send some of the elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stretto.codecs import Chain, DctTopK, RandomK, Threshold, TopK
from stretto.codecs.largest import SAMPLE, guess, reaching
from stretto.codecs.places import BLOCK, Places, nbytes, read
from stretto.codecs.strata import strata
from stretto.codecs.tiles import BASIS, FINE, Tiling, cosines
from stretto.core import Codec, Like, Named, mixed
from stretto.errors import DamagedPayload, NonFinite, UsageError
from stretto.text import coerce, parse

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sent_and_read(codec: Codec, x: Tensor, like: Like | None = None) -> Tensor:
    like = like or Like.of(x)
    payload, state = codec.encode(x, like, codec.init(like))
    return codec.decode(payload, like, state)[0]


def kept_by_sorting(x: Tensor, k: int) -> Tensor:
    """The twin of topk: sort all, stably, and forget the rest."""
    flat = x.reshape(-1)
    first = flat.abs().sort(descending=True, stable=True).indices[:k]
    return torch.zeros_like(flat).index_copy(0, first, flat[first]).view(x.shape)


# The k largest


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("levels", [3, 60_000], ids=["ties", "few ties"])
@pytest.mark.parametrize("n", [1, 7, BLOCK, 3 * BLOCK + 5])
def test_topk_keeps_what_sorting_would_keep_and_of_equal_ones_the_first(
    n: int, levels: int, dtype: torch.dtype
) -> None:
    x = torch.randint(-levels, levels + 1, (n,), generator=torch.Generator().manual_seed(n)).to(dtype)
    for fraction in (0.001, 0.01, 0.5, 1.0):
        k = max(1, math.ceil(round(fraction * n, 6)))
        assert torch.equal(sent_and_read(TopK(fraction), x), kept_by_sorting(x, k))


def test_topk_is_exact_where_its_sample_saw_only_the_largest() -> None:
    n, k = 8 * SAMPLE, SAMPLE // 2
    x = normal(n)
    x[next(strata(n, SAMPLE, mixed(0, 0))).at] += 100
    assert len(reaching(guess(x, k + SAMPLE, mixed(0, 0), 3), x, n)) < k + SAMPLE
    codec = TopK((k + SAMPLE) / n)
    assert torch.equal(sent_and_read(codec, x), kept_by_sorting(x, k + SAMPLE))
    sampled = sent_and_read(TopK((k + SAMPLE) / n, sampled=True), x)
    assert sampled.count_nonzero() < k + SAMPLE
    assert (sampled - x).norm() <= x.norm()


def test_a_sampled_topk_sends_about_as_much_as_asked_and_never_more() -> None:
    n = 40 * SAMPLE
    for seed in range(5):
        found = int(sent_and_read(TopK(0.01, sampled=True), normal(n, seed=seed)).count_nonzero())
        assert 0.8 * 0.01 * n < found <= math.ceil(0.01 * n)


def test_zeros_do_not_travel() -> None:
    x = torch.zeros(1000)
    x[[3, 700]] = torch.tensor([-1.0, 1e-44])
    codec, like = TopK(0.01), Like.of(x)
    (payload,), _ = codec.encode(x, like, None)
    assert payload.numel() == codec.size(like)
    assert torch.equal(codec.decode((payload,), like, None)[0], x)
    assert payload.count_nonzero() < 20


def test_the_search_forgets_what_it_need_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    gather = Places.gather
    monkeypatch.setattr(Places, "gather", lambda places, *args: (held.append(len(places)), gather(places, *args))[1])
    reaching(1, normal(30 * BLOCK).abs().sort().values, 1000)
    assert max(held) <= 1000 + 2 * BLOCK


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threshold_sends_all_that_reaches_it_and_nothing_else(dtype: torch.dtype) -> None:
    x = normal(BLOCK + 100).to(dtype)
    out = sent_and_read(Threshold(1.37), x)
    assert torch.equal(out, torch.where(x.double().abs() >= 1.37, x, 0))


def test_threshold_sends_no_more_than_its_most_and_then_the_largest() -> None:
    x = normal(5000)
    assert torch.equal(sent_and_read(Threshold(1e-3, most=0.1), x), kept_by_sorting(x, 500))


def test_of_threshold_only_what_passes_takes_bytes() -> None:
    x, like = normal(5000), Like((5000,), torch.float32)
    few, many = (Threshold(value).encode(x, like, None)[0][0].numel() for value in (3.0, 1.0))
    assert few < many < Threshold(1.0).size(like)
    assert few == 4 * int((x.abs() >= 3).sum()) + nbytes(5000, int((x.abs() >= 3).sum()))


# Places


@given(st.integers(0, 3 * BLOCK), st.floats(0, 1), st.integers(0, 99), st.integers(0, 2**32))
def test_places_are_read_as_they_were_written(n: int, share: float, spare: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random(n) < share**4
    blocks = [np.flatnonzero(mask[at : at + BLOCK]).astype(np.uint16) for at in range(0, n, BLOCK)]
    k = min(n, int(mask.sum()) + spare)
    raw = torch.empty(nbytes(n, k), dtype=torch.uint8).random_()
    Places(n, blocks).write(k, raw)
    assert all(np.array_equal(a, b) for a, b in zip(read(raw, n, k, "test").blocks, blocks, strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:4].copy_(raw[[2, 3, 0, 1]]),  # does not ascend
        lambda raw: raw[2:4].copy_(raw[:2]),  # is there twice
        lambda raw: raw[18:20].fill_(255),  # is not below n
        lambda raw: raw[-4:].fill_(255),  # more than k
        lambda raw: raw[-4:-3].sub_(1),  # fewer than there are
        lambda raw: raw[-8:-4].fill_(255),  # more in a block than there are
        lambda raw: raw[-8:-4].fill_(1),  # others in a block than there are
    ],
)
def test_places_that_nobody_writes_are_damage(damage: Any) -> None:
    x = torch.zeros(BLOCK + 1000)
    x[[1, 2, 300, 4000, 5000, 60000, BLOCK, BLOCK + 9, BLOCK + 99, BLOCK + 999]] = 1
    codec, like = TopK(10 / len(x)), Like.of(x)
    (payload,), _ = codec.encode(x, like, None)
    damage(payload[40:])
    with pytest.raises(DamagedPayload):
        codec.decode((payload,), like, None)


def test_many_places_take_a_bit_each() -> None:
    assert nbytes(BLOCK, BLOCK // 100) == 2 * (BLOCK // 100) + 4
    assert nbytes(BLOCK, BLOCK // 2) == BLOCK // 8 + 4
    assert nbytes(0, 0) == 0


# Elements that all draw alike


@given(st.integers(0, 10**6), st.floats(0.001, 1), st.integers(0, 2**62))
def test_one_element_is_drawn_of_each_of_k_nearly_equal_parts_of_all(n: int, fraction: float, seed: int) -> None:
    k = math.ceil(fraction * n)
    drawn = list(strata(n, k, seed))
    at, width = (
        torch.cat([torch.empty(0, dtype=torch.int64), *parts])
        for parts in ([d.at for d in drawn], [d.width for d in drawn])
    )
    assert len(at) == k and int(width.sum()) == n
    starts = width.cumsum(0) - width
    assert ((starts <= at) & (at < starts + width)).all()
    assert not k or width.max() - width.min() <= 1


def test_of_each_part_every_element_is_drawn_as_often() -> None:
    """Chi-squared of 96 degrees of freedom: one right draw of a million is beyond 170."""
    draws = 2000
    counts = torch.zeros(100)
    for seed in range(draws):
        counts[next(strata(100, 4, mixed(seed))).at] += 1
    expected = draws / 25
    assert float(((counts - expected) ** 2 / expected).sum()) < 170


def test_randomk_of_all_agents_is_of_the_same_elements_and_of_others_the_next_time() -> None:
    codec = RandomK(0.1)
    one, other = Like((500,), torch.float32, seed=3, own=1), Like((500,), torch.float32, seed=3, own=2)
    ones, state = torch.ones(500), codec.init(one)
    first, state = codec.encode(ones, one, state)
    a, b = (codec.decode(first, like, state)[0] for like in (one, other))
    assert torch.equal(a, b)
    second, state = codec.encode(ones, one, state)
    assert not torch.equal(codec.decode(second, one, state)[0], a)


def test_scaled_randomk_keeps_the_sum_of_a_constant_and_unscaled_the_elements() -> None:
    x = torch.full((997,), 0.5)
    assert float(sent_and_read(RandomK(0.1), x).sum()) == pytest.approx(997 / 2)
    out = sent_and_read(RandomK(0.1, scaled=False), x)
    assert set(out.tolist()) == {0.0, 0.5} and int((out > 0).sum()) == 100


def test_a_scaled_element_that_its_dtype_cannot_hold_ends_at_the_largest_number() -> None:
    out = sent_and_read(RandomK(0.01), torch.full((1000,), 5e4, dtype=torch.float16))
    assert out.max() == torch.finfo(torch.float16).max


def test_what_is_not_drawn_must_be_finite_too() -> None:
    x = torch.ones(1000)
    x[7] = math.nan
    with pytest.raises(NonFinite):
        sent_and_read(RandomK(0.001), x)
    assert sent_and_read(RandomK(0.001, nonfinite="pass"), x).isnan().sum() == 1


# Chains


def test_a_chain_is_written_with_a_plus() -> None:
    chain = Chain("topk(0.05)", "int4")
    assert str(chain) == "topk(0.05)+int4"
    assert parse("topk(0.05) + int4", "codec") == chain == parse("chain(topk(0.05), int4)", "codec")
    assert str(parse("feedback(topk(0.05)+int4)", "codec")) == "feedback(topk(0.05)+int4)"


@pytest.mark.parametrize(
    "sparse", ["topk(0.1)", "topk(0.1, sampled=true)", "threshold(1.5)", "randomk(0.1, scaled=false)"]
)
def test_a_chain_writes_what_was_selected_and_nothing_else(sparse: str) -> None:
    x, first = normal(3000), coerce(sparse, "codec")
    kept, out = sent_and_read(first, x), sent_and_read(Chain(sparse, "int8"), x)
    assert not out[kept == 0].any()
    assert (kept - out).abs().max() <= kept.abs().max() / 127


def test_a_chain_takes_the_bytes_of_what_it_is_made_of() -> None:
    like = Like((100_000,), torch.float32)
    plain, chain = TopK(0.01).size(like), Chain("topk(0.01)", "int8").size(like)
    assert plain - chain == 4 * 1000 - coerce("int8", "codec").size(Like((1000,), torch.float32))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("int8+int4", "selects nothing"),
        ("feedback(topk(0.01))+int4", "selects nothing"),
        ("topk(0.1)+int8+int4", "selects nothing"),
        ("topk(0.1)+randomk(0.1)", "read by itself"),
        ("topk(0.1)+identity", "read by itself"),
        ("topk(0.1)+feedback(int8)", "other elements each time"),
        ("randomk(0.01)+int8", r"write randomk\(0.01, scaled=false\)\+int8|write randomk\(scaled=false\)\+int8"),
        ("topk(0)", "above 0"),
        ("topk(1.5)", "at most 1"),
        ("randomk(-1)", "above 0"),
        ("threshold(0)", "positive"),
        ("threshold(0.1, most=2)", "most"),
        ("dct_topk(block=1000)", "1 to 256"),
        ("topk(nonfinite='maybe')", "nonfinite"),
    ],
)
def test_what_cannot_be_is_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(text, "codec")


# Frequencies


def test_frequencies_keep_the_norm_and_lead_back() -> None:
    for shape in [(64, 64), (61, 130), (1, 7), (300, 3), (129, 1)]:
        x = normal(*shape)
        tiling = Tiling.of(Named("", shape), 64)
        for group in tiling.groups():
            tile = x[group.rows, group.columns]
            found = tiling.frequencies(tile)
            assert found.norm() * 4 * math.sqrt(tiling.area) == pytest.approx(float(tile.norm()), rel=1e-5)
            assert (tiling.elements(found, group) - tile).norm() <= 1e-5 * tile.norm()


def test_a_prime_side_is_cut_into_equal_tiles_all_the_same() -> None:
    tiling = Tiling.of(Named("", (101, 8)), 64)
    assert (tiling.height, tiling.width, tiling.tiles) == (51, 8, 2)


def test_a_smooth_matrix_takes_few_frequencies() -> None:
    at = torch.linspace(0, 3, 128)
    x = torch.sin(at)[:, None] * torch.cos(at)[None]
    codec = DctTopK(0.01)
    assert (sent_and_read(codec, x) - x).norm() < 0.02 * x.norm()
    assert (sent_and_read(TopK(0.01), x) - x).norm() > 0.9 * x.norm()


def test_the_tiles_are_those_of_each_parameter() -> None:
    pieces = (Named("a", (64, 64)), Named("b", (10,)), Named("c", (8, 3, 3, 3)))
    whole = Like((64 * 64 + 10 + 216,), torch.float32, pieces)
    x = normal(whole.numel)
    apart = [
        sent_and_read(DctTopK(0.1), p.view(n.shape)).view(-1)
        for p, n in zip(x.split([4096, 10, 216]), pieces, strict=True)
    ]
    assert torch.equal(sent_and_read(DctTopK(0.1), x, whole), torch.cat(apart))


def test_no_sum_of_the_inverse_is_rounded_in_whatever_order_it_is_added() -> None:
    for n in range(1, 257):
        columns = torch.round(cosines(n) * 2.0**BASIS).abs().sum(0)
        assert float(columns.max()) * 2**FINE < 2**53


def test_no_cosine_is_so_near_a_tie_that_a_processor_could_round_it_otherwise() -> None:
    for n in range(1, 257):
        scaled = cosines(n) * 2.0**BASIS
        assert float(((scaled - scaled.floor()) - 0.5).abs().min()) > 1e-7


# What feedback takes away


@pytest.mark.parametrize(
    "text",
    [
        "topk(0.1)",
        "topk(0.6)",
        "threshold(1.0)",
        "randomk(0.1, scaled=false)",
        "dct_topk(0.1)",
        "topk(0.1)+int8",
        "dct_topk(0.1)+int8",
    ],
)
def test_what_is_taken_away_is_what_would_be_decoded(text: str) -> None:
    codec, y = parse(text, "codec"), normal(2000)
    like = Like.of(y)
    payload, state = codec.encode(y, like, codec.init(like))
    left = y.clone()
    codec.take(left, payload, like, state)
    assert torch.equal(left, y - codec.decode(payload, like, state)[0])
