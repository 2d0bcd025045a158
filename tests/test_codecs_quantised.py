"""What is special to codecs that quantise every element. What all codecs promise is in contracts/test_codecs.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stretto.codecs import Bf16, Fp8, Fp16, Int2, Int4, Int8, Natural, Sign, Ternary, planes
from stretto.codecs.chunks import CHUNK
from stretto.codecs.noise import uniform
from stretto.core import Codec, Like
from stretto.errors import DamagedPayload, NonFinite, UsageError
from stretto.text import parse

BLOCKED = [Int8(), Int4(), Int2(), Fp8(), Fp8(format="e5m2"), Sign()]
RANDOM = [Int8(stochastic=True), Int4(stochastic=True), Int2(stochastic=True), Ternary(), Natural()]
LENGTHS = [1, 7, 8, 127, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 13]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sent(codec: Codec, x: Tensor, own: int = 0) -> Tensor:
    like = Like.of(x, own=own)
    ((payload,), _) = codec.encode(x, like, codec.init(like))
    return payload


def read(codec: Codec, payload: Tensor, like: Like) -> Tensor:
    return codec.decode((payload,), like, codec.init(like))[0]


def through(codec: Codec, x: Tensor, own: int = 0) -> Tensor:
    return read(codec, sent(codec, x, own), Like.of(x))


def lost(codec: Codec, x: Tensor) -> float:
    return float((x - through(codec, x)).double().norm() / x.double().norm())


@pytest.mark.parametrize("text", ["int8", "int4(block=64)", "int2(stochastic=true)", "fp8(format='e5m2')", "sign"])
def test_the_text_of_a_codec_is_what_one_would_write(text: str) -> None:
    assert str(parse(text, "codec")) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int8(block=100)", "block=100 is not a power of two from 8 to 16384"),
        ("sign(block=4)", "block=4"),
        ("natural(block=32768)", "block=32768"),
        ("fp8(format='e3m4')", "'e3m4' is neither 'e4m3' nor 'e5m2'"),
        ("bf16(nonfinite='ignore')", "'ignore' is neither 'raise' nor 'pass'"),
    ],
)
def test_a_wrong_parameter_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text, "codec")


@given(st.sampled_from([8, 4, 2]), st.integers(1, 100), st.integers(0, 1 << 30))
def test_packed_codes_are_twos_complement_at_the_top_of_a_byte(bits: int, n: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, n, dtype=np.uint8)
    raw = np.empty(-(-n * bits // 8), np.uint8)
    planes.pack(codes.copy(), bits, raw)
    tops = planes.unpack(raw, bits, np.empty(n, np.uint8)).view(np.int8)
    assert (tops.astype(int) == (codes.astype(int) - (1 << bits - 1)) << 8 - bits).all()


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(("codec", "levels"), [(Int8(), 127), (Int4(), 7)], ids=str)
def test_integers_are_the_nearest_multiples_block_by_block(codec: Int8 | Int4, levels: int, n: int) -> None:
    x = normal(n)
    twin = torch.cat(
        [torch.floor(b * (levels / b.abs().max()) + 0.5) * (b.abs().max() / levels) for b in x.split(codec.block)]
    )
    step = x.abs().max() / levels
    assert ((through(codec, x) - twin).abs() > 1e-5 * step).sum() <= 2 + n // 10_000  # but for ties


@pytest.mark.parametrize("codec", BLOCKED, ids=str)
def test_a_long_vector_is_its_blocks_one_after_the_other(codec: Int8) -> None:
    x = normal(2 * CHUNK + 13)
    out = through(codec, x)
    for start in (0, CHUNK - codec.block, CHUNK, 2 * CHUNK):
        block = x[start : start + codec.block]
        assert torch.equal(out[start : start + codec.block], through(codec, block))


@pytest.mark.parametrize("codec", [*BLOCKED, *RANDOM, Bf16(), Fp16()], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_sent_as_their_float32(codec: Codec, dtype: torch.dtype) -> None:
    x = normal(CHUNK + 1000).to(dtype)
    assert torch.equal(sent(codec, x), sent(codec, x.float()))
    assert torch.equal(through(codec, x), through(codec, x.float()).to(dtype))


@pytest.mark.parametrize("codec", [*BLOCKED, *RANDOM, Bf16(), Fp16()], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(codec: Codec) -> None:
    x = normal(CHUNK + 40_000)
    try:
        torch.set_num_threads(4)
        payload, out = sent(codec, x), through(codec, x)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(payload, sent(codec, x))
    assert torch.equal(out, through(codec, x))


@pytest.mark.parametrize("codec", [*BLOCKED, *RANDOM, Bf16(), Fp16()], ids=str)
def test_a_payload_is_read_wherever_it_lies_in_memory(codec: Codec) -> None:
    x = normal(1001)
    payload = sent(codec, x)
    shifted = torch.empty(len(payload) + 1, dtype=torch.uint8)[1:].copy_(payload)
    assert torch.equal(read(codec, shifted, Like.of(x)), read(codec, payload, Like.of(x)))


@pytest.mark.parametrize("codec", [c for c in [*BLOCKED, *RANDOM] if not isinstance(c, Sign | Int2)], ids=str)
def test_zero_stays_zero_beside_others(codec: Codec) -> None:
    x = normal(CHUNK + 1000)
    x[::3] = 0
    assert all((through(codec, x, own)[::3] == 0).all() for own in range(20))


@pytest.mark.parametrize("codec", [*BLOCKED, *RANDOM, Bf16(), Fp16()], ids=str)
def test_a_vector_of_zeros_comes_back_as_zeros(codec: Codec) -> None:
    assert (through(codec, torch.zeros(CHUNK + 5)) == 0).all()


@pytest.mark.parametrize("codec", RANDOM, ids=str)
def test_each_element_becomes_one_of_the_two_levels_around_it(codec: Int8) -> None:
    x = normal(4000)
    draws = torch.stack([through(codec, x, own) for own in range(200)])
    low, high = draws.min(0).values, draws.max(0).values
    assert ((draws == low) | (draws == high)).all()
    assert ((low <= x) & (x <= high))[low < high].all()


def test_noise_is_uniform_for_each_element_over_draws_and_over_elements_in_each_draw() -> None:
    draws = torch.stack([uniform(0.0, 3 * CHUNK, seed).rows(2 * CHUNK, torch.empty(1, 500))[0] for seed in range(500)])
    for mean in (draws.mean(0), draws.mean(1)):
        z = (mean - 0.5) * math.sqrt(12 * 500)
        assert z.abs().max() < 5  # false alarm: 6e-4 for 1,000 normal z
        assert 0.9 < z.std() < 1.1  # 3 sigma of the deviation of 500


def test_chunks_read_the_noise_from_different_places() -> None:
    noise = uniform(0.0, 8 * CHUNK, 0)
    rows = [noise.rows(i * CHUNK, torch.empty(1, 100)) for i in range(8)]
    assert all(not torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])


def test_ternary_is_minus_nothing_or_plus_the_largest_magnitude() -> None:
    x = normal(512)
    assert set(through(Ternary(), x).tolist()) <= {-float(x.abs().max()), 0.0, float(x.abs().max())}


def test_natural_is_a_power_of_two_of_the_same_sign() -> None:
    x = normal(10_000) * 10.0 ** torch.linspace(-20, 10, 10_000)
    mantissa, _ = through(Natural(), x).frexp()
    assert (mantissa == 0.5 * x.sign()).all()


def test_what_natural_rounds_up_beyond_the_dtype_is_its_largest_number() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.full((100,), torch.finfo(dtype).max, dtype=dtype)
        assert (through(Natural(), x) == x).all()


def test_sign_loses_what_the_paper_says() -> None:
    x = normal(1024)
    kept = float(x.abs().sum()) ** 2 / 1024
    assert float((x - through(Sign(), x)).square().sum()) == pytest.approx(float(x.square().sum()) - kept, rel=1e-5)


@pytest.mark.parametrize(
    ("codec", "relative"),
    [
        (Bf16(), 0.0017),
        (Fp16(), 0.0003),
        (Int8(), 0.008),
        (Fp8(), 0.03),
        (Int4(), 0.13),
        (Int2(), 0.35),
        (Sign(), 0.61),
    ],
    ids=str,
)
def test_of_a_normal_distribution_so_much_is_lost(codec: Codec, relative: float) -> None:
    assert lost(codec, normal(100_000)) < relative


@pytest.mark.parametrize(
    ("codec", "dtype"), [(Fp8(), torch.float8_e4m3fn), (Fp8(format="e5m2"), torch.float8_e5m2)], ids=str
)
def test_codes_of_fp8_are_those_of_torch(codec: Fp8, dtype: torch.dtype) -> None:
    x = normal(codec.block) * 10.0 ** torch.linspace(-6, 0, codec.block)
    codes = sent(codec, x)[4:].view(dtype)
    scale = x.abs().max() / torch.finfo(dtype).max
    assert torch.allclose(codes.float() * scale, through(codec, x), rtol=1e-6, atol=0)
    assert (
        codes.view(torch.uint8) != (x / scale).to(dtype).view(torch.uint8)
    ).sum() <= 5  # ties, up here, to even there


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_an_fp8_code_of_no_number_is_damage(code: int) -> None:
    payload = sent(Fp8(), normal(100))
    payload[50] = code
    with pytest.raises(DamagedPayload, match="NaN or infinity"):
        read(Fp8(), payload, Like((100,), torch.float32))


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf])
def test_a_scale_that_nothing_has_is_damage(scale: float) -> None:
    payload = sent(Int8(), normal(1000))
    payload[4:8] = torch.tensor([scale]).view(torch.uint8)
    with pytest.raises(DamagedPayload, match="scales"):
        read(Int8(), payload, Like((1000,), torch.float32))


@pytest.mark.parametrize("codec", [*BLOCKED, *RANDOM], ids=str)
def test_nan_that_may_pass_takes_its_own_block_with_it_and_no_other(codec: Int8) -> None:
    lenient = parse(f"{str(codec).rstrip(')')}{', ' if '(' in str(codec) else '('}nonfinite='pass')", "codec")
    x = normal(CHUNK + 1000)
    clean = through(lenient, x)
    x[77] = math.nan
    out, ends = through(lenient, x), codec.block
    assert out[:ends].isnan().all()
    assert torch.equal(out[ends:], clean[ends:])


@pytest.mark.parametrize("codec", [Bf16(nonfinite="pass"), Fp16(nonfinite="pass")], ids=str)
def test_a_cast_passes_nan_and_infinity_as_nan_and_the_rest_as_it_is(codec: Codec) -> None:
    x = torch.tensor([1.0, math.nan, -2.0, math.inf, -math.inf, 0.5])
    assert through(codec, x).isnan().tolist() == [False, True, False, True, True, False]
    assert through(codec, x)[[0, 2, 5]].tolist() == [1.0, -2.0, 0.5]


def test_fp16_scales_what_is_beyond_it_and_nothing_else() -> None:
    like = Like((1000,), torch.float32)
    x = normal(1000) * 1e30
    assert lost(Fp16(), x) < 2.0**-11
    assert float(x.abs().max() - read(Fp16(), sent(Fp16(), x), like).abs().max()) < 2.0**-11 * float(x.abs().max())
    assert sent(Fp16(), normal(1000))[-2:].tolist() == [0, 0]


def test_bf16_has_a_largest_number_and_no_infinity() -> None:
    x = torch.tensor([3.4028234e38, -3.4e38, 1.0])
    most = torch.finfo(torch.bfloat16).max
    assert through(Bf16(), x).tolist() == [most, -most, 1.0]


def test_a_finite_sum_is_not_asked_of_huge_elements() -> None:
    x = torch.full((1000,), torch.finfo(torch.float32).max)
    assert (through(Sign(), x) == x).all()
    with pytest.raises(NonFinite):
        sent(Sign(), torch.cat([x, torch.tensor([math.inf])]))
