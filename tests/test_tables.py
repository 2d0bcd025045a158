"""Tables: gradients of rows leave as rows, each once, from memory that the courier sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stretto.errors import UsageError
from stretto.server import Rows
from stretto.tables import Shelf, rows_of, tables
from stretto.workloads.factors import Factors


def allocate(nbytes: int) -> Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


def gradient_of(looked_up: list[int], height: int = 9, width: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """A table's gradient where these rows were looked up: of the n-th lookup n, n + 1, …."""
    values = torch.arange(len(looked_up)).view(-1, 1) + torch.arange(width)
    return torch.sparse_coo_tensor(
        torch.tensor([looked_up], dtype=torch.int64), values.to(dtype), (height, width), check_invariants=True
    )


lookups = st.lists(st.integers(0, 8), max_size=20)


@given(lookups, st.sampled_from([torch.float32, torch.float64]))
def test_rows_come_once_in_order_and_are_the_sums_that_coalescing_gives(
    looked_up: list[int], dtype: torch.dtype
) -> None:
    gradient = gradient_of(looked_up, dtype=dtype)
    found = rows_of(gradient)
    assert found.rows.tolist() == sorted(set(looked_up)) and found.rows.dtype == torch.int64
    assert found.values.shape == (len(found.rows), 3) and found.values.dtype == dtype
    assert torch.equal(found.values, gradient.coalesce().values())
    assert torch.equal(torch.zeros(9, 3, dtype=dtype).index_add_(0, found.rows, found.values), gradient.to_dense())


def test_what_was_put_lies_in_the_memory_that_was_allocated_and_the_gradient_stays_as_it_was() -> None:
    given_out: list[Tensor] = []
    shelf = Shelf(torch.zeros(9, 3), lambda n: given_out.append(allocate(n)) or given_out[-1])
    gradient = gradient_of([8, 4, 8])
    held, (memory,) = shelf.put(rows_of(gradient)), given_out
    for x in (held.rows, held.values):
        assert memory.data_ptr() <= x.data_ptr() and x[-1:].data_ptr() < memory.data_ptr() + len(memory)
    held.values.zero_()
    assert rows_of(gradient).values.tolist() == [[1, 2, 3], [2, 4, 6]]


@given(st.lists(lookups, max_size=6), st.sampled_from([torch.float32, torch.float64]))
def test_one_batch_after_the_other_lies_there_as_it_was(batches: list[list[int]], dtype: torch.dtype) -> None:
    shelf = Shelf(torch.zeros(9, 3, dtype=dtype), allocate)
    for looked_up in batches:
        whole = rows_of(gradient_of(looked_up, dtype=dtype))
        held = shelf.put(whole)
        assert torch.equal(held.rows, whole.rows) and torch.equal(held.values, whole.values)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_memory_grows_to_twice_what_it_was_and_never_beyond_the_table(counts: list[int]) -> None:
    taken: list[int] = []
    shelf = Shelf(torch.zeros(5000, 3), lambda n: taken.append(n) or allocate(n))
    for count in counts:
        shelf.put(Rows(torch.arange(count), torch.ones(count, 3)))
    row = 8 + 3 * 4
    assert max(taken, default=0) <= 5000 * row
    assert sum(taken) <= 4 * max(256, *counts) * row
    assert taken == sorted(set(taken))


def test_a_batch_that_touches_nothing_pushes_no_rows() -> None:
    empty = Shelf(torch.zeros(9, 3), allocate).put(rows_of(gradient_of([])))
    assert empty.rows.shape == (0,) and empty.values.shape == (0, 3)


@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag], ids=["Embedding", "EmbeddingBag"])
def test_a_backward_with_repeats_and_accumulation_gives_the_dense_gradient_by_rows(
    make: Callable[..., nn.Module],
) -> None:
    gradients = []
    for sparse in (True, False):
        torch.manual_seed(0)
        embedding = make(7, 3, sparse=sparse)
        for batch in ([[5, 1], [1, 1]], [[5, 2], [0, 5]]):
            embedding(torch.tensor(batch)).square().sum().backward()
        gradients.append(embedding.weight.grad)
    found = rows_of(gradients[0])
    assert found.rows.tolist() == [0, 1, 2, 5]
    torch.testing.assert_close(torch.zeros(7, 3).index_add_(0, found.rows, found.values), gradients[1])


def test_tables_are_the_embeddings_that_were_made_sparse_each_once() -> None:
    one, other = Factors(4, 3, 2, sparse=True), nn.Embedding(5, 2, sparse=True)
    other.weight.requires_grad_(False)
    again = nn.Embedding(4, 3, sparse=True)
    again.weight = one.users.weight
    found = tables([one, nn.ModuleList([other, nn.Embedding(2, 2), again, nn.Linear(2, 2)])])
    assert [id(p) for p in found] == [id(one.users.weight), id(one.items.weight)]
    assert tables([Factors(4, 3, 2)]) == []


def test_a_table_whose_weight_is_used_densely_too_is_refused_with_both_names() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(4, 2, sparse=True), "head": nn.Linear(2, 4, bias=False)})
    model["head"].weight = model["tokens"].weight
    with pytest.raises(UsageError, match=r"tokens has sparse gradients and shares its weight as head.weight"):
        tables([model])


def test_a_gradient_that_is_dense_all_the_same_is_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    nn.functional.linear(embedding(torch.tensor([1])), embedding.weight).sum().backward()
    with pytest.raises(UsageError, match=r"table \[4, 2\] is not of some rows: something else than its embedding"):
        rows_of(embedding.weight.grad)


def test_a_bound_on_norms_is_refused_for_no_server_would_hear_of_it() -> None:
    with pytest.raises(UsageError, match=r"tokens has max_norm=1, .* leave max_norm out, or sparse=True"):
        tables([nn.ModuleDict({"tokens": nn.Embedding(4, 2, sparse=True, max_norm=1.0)})])
