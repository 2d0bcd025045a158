"""Codecs by layer: which parameter goes where."""

from __future__ import annotations

import re

import pytest
import torch
from contracts.coding import alone, bucket, filled, norm, same

from stretto.codecs import Bf16, Feedback, Identity, Int4, Int8, PerLayer, Sign, TopK
from stretto.core import Like, Named
from stretto.errors import NonFinite, UsageError
from stretto.text import parse


def test_roles_and_patterns_choose_and_the_first_that_fits_counts() -> None:
    codec = PerLayer({"*.bias": "bf16", "biases": "sign", "embeddings": "int4", "body.*": "identity"})
    assert codec.groups(bucket()) == (
        (Bf16(), ((1088, 1112),)),
        (Int4(), ((0, 320),)),
        (Identity(), ((320, 1088), (1112, 1136))),
        (Int8(), ((1136, 1352),)),
    )


def test_parameters_of_one_codec_are_one_group_whatever_key_names_it() -> None:
    assert PerLayer().groups(bucket()) == (
        (Identity(), ((1088, 1136),)),
        (Int8(), ((0, 1088), (1136, 1352))),
    )


def test_a_key_that_nothing_fits_is_no_group() -> None:
    codec = PerLayer({"head.*": "sign", "norms": "identity"}, rest="int4")
    assert codec.groups(Like((9,), torch.float32)) == ((Int4(), ((0, 9),)),)
    assert codec.groups(Like((0,), torch.float32)) == ()


@pytest.mark.parametrize("key", ["head.*", "bias", "Embed.*"])
def test_a_pattern_that_fits_nothing_in_the_whole_model_is_named_with_names_that_there_are(key: str) -> None:
    codec = PerLayer({"embeddings": "int4", key: "sign", "conv.*": "int4"})
    with pytest.raises(UsageError, match=rf"{re.escape(repr(key))} fits no parameter of embed\.weight, body\.weight"):
        codec.check(bucket().pieces)
    PerLayer({"embeddings": "int4", "conv.*": "sign"}).check([Named("conv.weight", (2,), "weight")])


def test_it_says_what_travels_how() -> None:
    assert PerLayer({"embeddings": "int4"}).explain(bucket())[:2] == [
        "embed.weight travels by int4",
        "body.weight travels by int8",
    ]


def test_a_mapping_pairs_and_text_are_one_value() -> None:
    text = "per_layer({biases: identity, 'embed.*': int4}, rest=topk(0.1))"
    value = PerLayer({"biases": "identity", "embed.*": Int4()}, rest=TopK(0.1))
    assert parse(text, "codec") == value == PerLayer((("biases", Identity()), ("embed.*", "int4")), rest="topk(0.1)")
    assert str(value) == text


def test_each_group_is_what_its_codec_makes_of_it() -> None:
    like, codec = bucket(), PerLayer({"biases": "identity", "norms": "identity"}, rest="sign")
    x = filled(like.shape, "normal", torch.float32, 0)
    (out,) = alone(codec, x, like).decoded
    assert same(out[1088:1136], x[1088:1136])
    rest = torch.cat((x[:1088], x[1136:]))
    assert same(torch.cat((out[:1088], out[1136:])), alone(Sign(), rest, Like(rest.shape, x.dtype)).decoded[0])


def test_what_is_held_back_is_where_it_belongs() -> None:
    like, codec = bucket(), PerLayer({"body.weight": Feedback(Sign())}, rest="identity")
    x = filled(like.shape, "normal", torch.float32, 0)
    round_ = alone(codec, x, like)
    kept = codec.kept(like, round_.states[0])
    assert norm(x - round_.decoded[0] - kept) <= 1e-6 * norm(x)
    assert kept[:320].count_nonzero() == kept[1088:].count_nonzero() == 0 < kept[320:1088].count_nonzero()


def test_what_is_not_finite_names_the_parameter_of_its_group() -> None:
    x = filled((1352,), "normal", torch.float32, 0)
    x[1200] = torch.nan
    with pytest.raises(NonFinite, match=r"conv\.weight"):
        alone(PerLayer(), x, bucket())


@pytest.mark.parametrize("inner", ["lowrank(2)", "threshold(0.1)"])
def test_what_says_nothing_by_itself_travels_by_groups_only(inner: str) -> None:
    codec = PerLayer({"body.*": inner})
    assert parse(inner, "codec") in dict(codec.groups(bucket()))
    with pytest.raises(UsageError, match="by groups only"):
        alone(codec, torch.zeros(1352), bucket())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("per_layer(3)", "write pairs"),
        ("per_layer({a: 3})", "3 is not a codec"),
        ("per_layer(rest=every)", "every is not a codec"),
        ("per_layer({'': int8})", "pattern of names"),
    ],
)
def test_what_is_no_choice_of_codecs_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text, "codec")


def test_a_part_of_a_parameter_goes_where_the_whole_of_it_would() -> None:
    like = Like((16,), torch.float32, (Named("embed.weight", (2, 4), "embedding"), Named("norm", (8,), "norm")))
    part = like.part(5, 11, 0)
    assert PerLayer({"embeddings": "int4"}, rest="sign").groups(part) == ((Int4(), ((0, 3),)), (Sign(), ((3, 6),)))
