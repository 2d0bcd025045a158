"""Values as text and text as values."""

from __future__ import annotations

import pytest
from contracts.parts import KINDS
from hypothesis import given
from hypothesis import strategies as st

from stretto import topologies
from stretto.core import Strategy
from stretto.errors import StrettoError, UnknownName, UsageError
from stretto.schedules import Every
from stretto.strategies import allreduce
from stretto.text import DEEPEST, LONGEST, call_text, coerce, names, parse


@pytest.mark.parametrize("kind", KINDS)
def test_every_registered_name_is_its_own_canonical_text_or_a_sums(kind: str) -> None:
    for name in names(kind):
        value = parse(name, kind)
        assert str(value) == name or "+" in str(value)
        assert parse(str(value), kind) == value
        assert hash(parse(name, kind)) == hash(value)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("allreduce()", "allreduce"),
        ("allreduce(topology=auto, codec=identity)", "allreduce"),
        ("allreduce(codec=feedback( topk(0.05) + int4 ))", "allreduce(codec=feedback(topk(0.05)+int4))"),
        ("allreduce(codec=chain(topk(0.02), int8))", "allreduce(codec=topk(0.02)+int8)"),
        (
            "allreduce(codec=per_layer({biases: identity, 'a.*': int4}, rest=topk(0.05)+int8))",
            "allreduce(codec=per_layer({biases: identity, 'a.*': int4}, rest=topk(0.05)+int8))",
        ),
        (" allreduce( topology = hierarchical( star,tree ) )", "allreduce(topology=hierarchical(star, tree))"),
        ("allreduce(topology=hierarchical(across=star))", "allreduce(topology=hierarchical(across=star))"),
        ("allreduce(topology='ring')", "allreduce(topology=ring)"),
    ],
)
def test_text_has_one_canonical_form(written: str, canonical: str) -> None:
    assert str(parse(written, "strategy")) == canonical


def test_a_value_and_its_text_are_the_same_strategy() -> None:
    value = allreduce(topology=topologies.DoubleTree())
    read = parse("allreduce(topology=double_tree)", "strategy")
    assert isinstance(read, Strategy)
    assert (read, str(read), read.digest) == (value, str(value), value.digest)
    assert coerce(value, "strategy") is value
    assert value.digest != allreduce().digest


def test_defaults_are_left_out_and_positions_kept() -> None:
    assert str(Every(8)) == "every(8)"
    assert str(Every()) == "every"
    assert call_text(Every, {"steps": 3}) == "every(3)"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("allredcue", "did you mean allreduce"),
        ("allreduce(topology=rnig)", "ring"),
        ("allreduce(topolgy=ring)", "did you mean topology"),
        ("zzz", "known: allreduce"),
    ],
)
def test_an_unknown_name_answers_with_the_nearest(text: str, hint: str) -> None:
    with pytest.raises(UnknownName, match=hint):
        parse(text, "strategy")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "allreduce(",
        "allreduce)",
        "allreduce(topology=)",
        "allreduce(ring)",
        "allreduce(topology=ring,, codec=identity)",
        "allreduce(topology=ring topology=ring)",
        "allreduce(topology=ring, topology=ring)",
        "allreduce; rm",
        "3",
        "true",
        "ring",
        "every(0)",
        "'allreduce'",
        "allreduce(codec=ring)",
        "allreduce(topology=int8)",
        "allreduce(codec=int8+)",
        "allreduce(codec=int8+int4)",
        "allreduce(codec=topk+3)",
        "allreduce(codec=topk(1.5))",
        "allreduce(codec=feedback(ternary))",
        "allreduce(codec=per_layer({biases}))",
        "allreduce(codec=per_layer({biases: int8, biases: int4}))",
        "allreduce(codec=per_layer({biases: int8)",
        "{a: 1}",
        "allreduce(topology=" * (DEEPEST + 2),
        "a" * (LONGEST + 1),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text, "strategy")
    assert len(str(refused.value)) < 500


@given(st.text(max_size=60) | st.text("allreduce(topology=ring,codec){}:+'\"\\ 0.5e", max_size=60))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        value = parse(text, "strategy")
    except StrettoError:
        return
    assert isinstance(value, Strategy)
