"""Gradients in flat buckets, without any process: what is sent, in which order, and what ``.grad`` is afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from stretto.buckets import BUCKET, Room, plan_buckets
from stretto.gradients import Gradients
from stretto.session import Closing

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Sends:
    """Records what is sent; ``change`` plays the others."""

    def __init__(self, change: Callable[[Tensor], None] = lambda flat: None) -> None:
        self.numbers: list[int] = []
        self.change = change
        self.waited = 0

    def __call__(self, number: int, of: int, flat: Tensor, mean: Tensor) -> Callable[[], None]:
        self.numbers.append(number)
        self.change(flat)

        def wait() -> None:
            self.waited += 1

        return wait


def memory(nbytes: int) -> Tensor:
    return torch.zeros(nbytes, dtype=torch.uint8)


def watch(
    *models: nn.Module, sends: Sends | None = None, room: Room | None = None, **more: Any
) -> tuple[Gradients, Sends]:
    sends = sends or Sends()
    return Gradients(models, room or Room(memory), sends, **more), sends


def deep(layers: int = 6, width: int = 512) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


# The plan


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(DTYPES)), max_size=30),
    st.integers(0, 50),
    st.sampled_from([1, 1000, BUCKET]),
)
def test_every_parameter_lies_in_one_bucket_of_its_dtype_last_first(
    sizes: list[tuple[int, torch.dtype]], buffers: int, most: int
) -> None:
    plans = plan_buckets(sizes, buffers, most)
    seen = [piece.parameter for plan in plans for piece in plan.pieces]
    assert sorted(seen) == list(range(len(sizes)))
    for dtype in DTYPES:
        mine = [piece.parameter for plan in plans if plan.dtype == dtype for piece in plan.pieces]
        assert mine == sorted(mine, reverse=True)
    for plan in plans:
        at = 0
        for piece in plan.pieces:
            assert (piece.start, piece.stop) == (at, at + sizes[piece.parameter][0])
            assert sizes[piece.parameter][1] == plan.dtype
            at = piece.stop
        assert plan.gradients == at
        assert sum(p.stop - p.start for p in plan.pieces[:-1]) * plan.dtype.itemsize < most
    extra = sum(plan.numel - plan.gradients - len(plan.pieces) - 2 for plan in plans)
    assert extra == buffers
    assert all(p.dtype == torch.float32 for p in plans if p.numel > p.gradients + len(p.pieces) + 2)


def test_nothing_to_exchange_is_no_bucket() -> None:
    assert plan_buckets([]) == ()


# Backward


def test_grads_are_views_of_the_buckets_with_the_values_of_backward() -> None:
    net, twin = deep(), deep()
    gradients, _ = watch(net)
    x = torch.randn(3, 512)
    for n in (net, twin):
        n(x).square().mean().backward()
    flats = {b.flat.untyped_storage().data_ptr() for b in gradients.buckets}
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.equal(p.grad, q.grad)
        assert p.grad.untyped_storage().data_ptr() in flats


def test_buckets_leave_in_their_order_and_the_first_before_backward_ends() -> None:
    net = deep()
    order: list[str] = []
    gradients, sends = watch(net, sends=Sends(lambda flat: order.append("sent")))
    assert len(gradients.buckets) > 1
    next(iter(net.parameters())).register_hook(lambda g: order.append("backward reaches the first layer"))
    net(torch.randn(3, 512)).sum().backward()
    assert sends.numbers == list(range(len(gradients.buckets)))
    assert sends.waited == len(sends.numbers)
    assert order[0] == "sent" and order[-1] == "sent" and "backward reaches the first layer" in order


def test_the_order_of_buckets_does_not_depend_on_which_branch_was_taken() -> None:
    """Agents that use different parameters send the same things in the same order."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(1100, 1100), nn.Linear(1100, 1100)

        def forward(self, x: Tensor, which: str) -> Tensor:
            y: Tensor = getattr(self, which)(x)
            return y

    for which in "ab":
        net = Branch()
        gradients, sends = watch(net)
        net(torch.randn(1, 1100), which).sum().backward()
        assert sends.numbers == [0, 1] == list(range(len(gradients.buckets)))


def tenfold(flat: Tensor) -> None:
    flat.mul_(10)


def test_what_the_exchange_leaves_is_what_the_optimizer_sees() -> None:
    net = nn.Linear(2, 1)
    watch(net, sends=Sends(tenfold))
    net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is not None and net.weight.grad.tolist() == [[10, 10]]


def test_inside_accumulate_nothing_is_sent_and_the_sum_is_sent_after() -> None:
    net = nn.Linear(2, 1)
    gradients, sends = watch(net)
    with gradients.accumulate():
        for _ in range(3):
            net(torch.ones(1, 2)).sum().backward()
    assert sends.numbers == []
    net(torch.ones(1, 2)).sum().backward()
    assert sends.numbers == [0]
    assert net.weight.grad is not None and net.weight.grad.tolist() == [[4, 4]]


def test_a_gradient_counts_as_much_as_its_weight_says() -> None:
    net = nn.Linear(2, 1)
    gradients, _ = watch(net)
    gradients.weight = 0.25
    net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is not None and net.weight.grad.tolist() == [[0.25, 0.25]]


def test_a_step_in_which_nobody_had_a_sample_moves_nothing() -> None:
    """The survivors of a death may all have had empty parts: the mean over no samples is no number."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def send(number: int, of: int, flat: Tensor, mean: Tensor) -> Callable[[], Closing]:
        return lambda: Closing(1, (1,), whole=False)

    gradients = Gradients([model], Room(memory), send)
    gradients.weight = 0.0
    model(torch.randn(3, 4)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert model[1].running_var.all()


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_of_either_kind_begins_afresh(to_none: bool) -> None:
    net = nn.Linear(2, 1)
    watch(net)
    for _ in range(3):
        net.zero_grad(set_to_none=to_none)
        net(torch.ones(1, 2)).sum().backward()
        assert net.weight.grad is not None and net.weight.grad.tolist() == [[1, 1]]


def test_a_parameter_that_nobody_used_has_no_gradient_and_may_be_used_later() -> None:
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    watch(first, second)
    first(torch.ones(1, 1)).sum().backward()
    assert [p.grad is None for p in (first.weight, second.weight)] == [False, True]
    second(torch.ones(1, 1)).sum().backward()
    assert second.weight.grad is not None and second.weight.grad.item() == 1.0


def test_a_shared_and_a_frozen_parameter_are_laid_out_once_and_not_at_all() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    net[2].requires_grad_(False)
    gradients, _ = watch(net)
    (bucket,) = gradients.buckets
    assert bucket.plan.gradients == 9 + 3 + 3


def test_an_error_of_an_exchange_comes_out_of_backward_and_the_next_works() -> None:
    net = nn.Linear(2, 1)
    sends = Sends()
    watch(net, sends=sends)

    def fail(flat: Tensor) -> None:
        raise RuntimeError("lost")

    sends.change = fail
    with pytest.raises(RuntimeError, match="lost"):
        net(torch.ones(1, 2)).sum().backward()
    sends.change = lambda flat: None
    net.zero_grad()
    net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad is not None and net.weight.grad.tolist() == [[1, 1]]


# Buffers


def halve_buffers(flat: Tensor) -> None:
    flat.mul_(0.5)


@pytest.mark.parametrize(
    ("rule", "leads", "change", "expected"),
    [
        ("mean", True, halve_buffers, 0.5),
        ("broadcast", True, halve_buffers, 1.0),
        ("broadcast", False, halve_buffers, 1.0),
        ("local", False, halve_buffers, 1.0),
    ],
)
def test_buffers_ride_with_the_last_bucket(rule: Any, leads: bool, change: Any, expected: float) -> None:
    """The other's buffers are zero here: a mean over two halves ours, and who follows a lost first keeps its own."""
    norm = nn.BatchNorm1d(2)
    watch(
        nn.Sequential(nn.Linear(2, 2), norm), sends=Sends(change), room=Room(memory, buffers=rule, leads=lambda: leads)
    )
    assert norm.running_mean is not None
    norm.running_mean.fill_(1.0)
    norm.eval()(torch.ones(3, 2, requires_grad=True)).sum().backward()
    assert norm.running_mean.tolist() == [expected, expected]


def test_buffers_of_a_model_without_float32_parameters_travel_too() -> None:
    net = nn.Linear(2, 2).double()
    scale = torch.full((3,), 8.0)
    net.register_buffer("scale", scale)
    watch(net, sends=Sends(halve_buffers))
    net(torch.ones(1, 2).double()).sum().backward()
    assert scale.tolist() == [4.0] * 3


def test_memory_is_one_copy_of_the_gradients_and_little_more() -> None:
    net = deep()
    taken: list[int] = []

    def allocate(nbytes: int) -> Tensor:
        taken.append(nbytes)
        return memory(nbytes)

    Gradients([net], Room(allocate), Sends())
    exact = sum(p.nbytes for p in net.parameters())
    assert exact <= sum(taken) <= exact + 1024
