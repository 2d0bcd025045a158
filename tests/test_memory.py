"""Shared memory between agents: arenas, barriers, all-reduce in place. Agents are threads here, with a board each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stretto.core import Member
from stretto.errors import PeerLost, UsageError
from stretto.links.memory import SMALL, Arena, Board, member_address, open_board

sizes = pytest.mark.parametrize("size", [2, 3, 5])


def boards(size: int, live: Callable[[Board], Any]) -> list[Any]:
    """``live(board)`` for every agent, in two threads, its trainer's and its courier's; what each gave or raised."""
    shared = Arena.create(Board.nbytes(size))
    all_ = [Board(Arena.open(os.getpid(), shared.fd, shared.nbytes), rank, size) for rank in range(size)]
    ends: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            ends[rank] = live(all_[rank])
        except BaseException as e:
            ends[rank] = e

    couriers = [threading.Thread(target=b.serve, daemon=True) for b in all_]
    trainers = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for t in couriers + trainers:
        t.start()
    for t in trainers:
        t.join(30)
    assert not any(t.is_alive() for t in trainers), "a trainer hangs"
    all_[0].break_off(0)
    for t in couriers:
        t.join(30)
    assert not any(t.is_alive() for t in couriers), "a courier hangs"
    shared.close()
    return ends


def numbers(rank: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank)).to(dtype)


def reduced(board: Board, numel: int, dtype: torch.dtype = torch.float32, times: int = 1) -> Tensor:
    arena = board.allocate(max(1, numel * dtype.itemsize))
    x = arena.tensor(0, numel, dtype)
    for _ in range(times):
        x.copy_(numbers(board.rank, numel, dtype))
        board.wait(board.submit(x, 1 / board.size))
    return x.clone()


def in_order_of_ranks(size: int, numel: int, dtype: torch.dtype) -> Tensor:
    total = numbers(0, numel, dtype)
    for rank in range(1, size):
        total += numbers(rank, numel, dtype)
    return total.mul_(1 / size)


@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numel", [0, 1, 777, SMALL // 4, SMALL // 4 + 1, 200_003])
def test_all_get_the_mean_added_in_the_order_of_ranks_bit_for_bit(size: int, dtype: torch.dtype, numel: int) -> None:
    expected = in_order_of_ranks(size, numel, dtype)
    for got in boards(size, lambda board: reduced(board, numel, dtype)):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("numel", [10, SMALL])
def test_hundreds_of_rounds_reuse_slots_and_orders(numel: int) -> None:
    for got in boards(3, lambda board: reduced(board, numel, times=300)):
        assert torch.equal(got, in_order_of_ranks(3, numel, torch.float32))


def test_many_may_be_under_way_and_awaited_in_any_order() -> None:
    """As backward does: buckets leave one after the other, small and large, and are awaited together."""

    def live(board: Board) -> list[bool]:
        sizes = [10, SMALL, 20, 2 * SMALL, *range(30, 60)]
        arena = board.allocate(4 * sum(sizes))
        xs, at = [], 0
        for numel in sizes:
            xs.append(arena.tensor(4 * at, numel, torch.float32))
            xs[-1].copy_(numbers(board.rank, numel))
            at += numel
        tickets = [board.submit(x, 0.5) for x in xs]
        for ticket in reversed(tickets):
            board.wait(ticket)
        return [torch.equal(x, in_order_of_ranks(2, len(x), torch.float32)) for x in xs]

    assert all(all(right) for right in boards(2, live))


@pytest.mark.parametrize("numel", [10, SMALL])
def test_who_waits_for_one_that_is_gone_is_told_who(numel: int) -> None:
    def live(board: Board) -> Any:
        x = board.allocate(4 * numel).tensor(0, numel, torch.float32)
        board.wait(board.submit(x, 1.0))
        if board.rank == 2:
            board.break_off(2)
            return "gone"
        while True:
            board.wait(board.submit(x, 1.0))

    ends = boards(3, live)
    assert ends[2] == "gone"
    assert all(isinstance(e, PeerLost) and e.peer == 2 and "agent 2" in str(e) for e in ends[:2])


def test_a_round_that_all_have_reached_is_finished_although_one_leaves_then() -> None:
    ready = threading.Barrier(2)

    def live(board: Board) -> Tensor:
        x = board.allocate(40).tensor(0, 10, torch.float32)
        x.copy_(numbers(board.rank, 10))
        ticket = board.submit(x, 0.5)
        ready.wait(10)
        if board.rank == 1:
            board.wait(ticket)
            board.break_off(1)
            ready.wait(10)
        else:
            ready.wait(10)
            board.wait(ticket)
        return x.clone()

    for got in boards(2, live):
        assert torch.equal(got, in_order_of_ranks(2, 10, torch.float32))


def test_a_tensor_that_is_not_in_shared_memory_is_refused() -> None:
    def live(board: Board) -> None:
        board.submit(torch.zeros(SMALL), 1.0)

    ends = boards(2, live)
    assert all(isinstance(e, UsageError) and "allocate it from the board" in str(e) for e in ends)


# Arenas


def test_two_mappings_of_an_arena_are_the_same_memory() -> None:
    mine = Arena.create(1000)
    theirs = Arena.open(os.getpid(), mine.fd, mine.nbytes)
    mine.tensor(8, 4, torch.float32).fill_(7.0)
    assert theirs.tensor(8, 4, torch.float32).tolist() == [7.0] * 4
    assert mine.bytes[:8].sum() == 0
    mine.close()
    theirs.close()


def test_an_arena_is_zeroed_and_of_whole_pages() -> None:
    arena = Arena.create(1)
    assert arena.nbytes == os.sysconf("SC_PAGESIZE") and not arena.bytes.any()
    arena.close()


def test_memory_outlives_the_descriptor_and_no_descriptor_is_left() -> None:
    before = len(os.listdir("/proc/self/fd"))
    arena = Arena.create(100)
    x = arena.tensor(0, 5, torch.float32)
    arena.close()
    x.fill_(3.0)
    assert x.tolist() == [3.0] * 5
    del arena, x
    assert len(os.listdir("/proc/self/fd")) == before


def test_offsets_are_found_only_inside() -> None:
    arena = Arena.create(4096)
    assert arena.offset_of(arena.tensor(128, 3, torch.float32)) == 128
    assert arena.offset_of(torch.zeros(3)) is None
    arena.close()


def test_memory_that_cannot_be_mapped_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="--link tcp"):
        Arena.open(2**22 - 1, 3, 4096)


def test_a_member_that_offers_no_memory_is_named() -> None:
    arena = Arena.create(Board.nbytes(2))
    open_board(Member(0, "here", os.getpid(), ("127.0.0.1:1", member_address(arena))), 2).close()
    arena.close()
    with pytest.raises(UsageError, match="agent 3 offers no shared memory"):
        open_board(Member(3, "here", os.getpid(), ("127.0.0.1:1",)), 2)
