"""Shared memory between agents: arenas, barriers, all-reduce in place. Agents are threads here, with a board each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stretto.errors import PeerLost, UsageError
from stretto.links.memory import SMALL, Arena, Board

sizes = pytest.mark.parametrize("size", [2, 3, 5])


def boards(size: int, live: Callable[[Board], Any]) -> list[Any]:
    """``live(board)`` for every agent, with its courier in a thread; what each gave or raised."""
    shared = Arena.create(Board.nbytes(size))
    all_ = [Board(Arena.open(os.getpid(), shared.fd, shared.nbytes), rank, size) for rank in range(size)]
    ends: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            ends[rank] = live(all_[rank])
        except BaseException as e:
            ends[rank] = e

    trainers = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for board in all_:
        board.serve()
    for t in trainers:
        t.start()
    for t in trainers:
        t.join(30)
    assert not any(t.is_alive() for t in trainers), "a trainer hangs"
    for board in all_:
        board.freeze()
    shared.close()
    return ends


def room(board: Board, numel: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A tensor in shared memory, with its numbers, and room for the mean."""
    arenas = [Arena.create(numel * dtype.itemsize) for _ in range(2)]
    board.register(arenas)
    x, mean = (arena.tensor(0, numel, dtype) for arena in arenas)
    return x.copy_(numbers(board.rank, numel, dtype)), mean


def numbers(rank: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank)).to(dtype)


def reduced(board: Board, numel: int, dtype: torch.dtype = torch.float32, times: int = 1) -> Tensor:
    x, mean = room(board, numel, dtype)
    for _ in range(times):
        board.wait(board.submit(x, mean.zero_(), 1 / board.size))
    assert torch.equal(x, numbers(board.rank, numel, dtype)), "an input was written"
    return mean.clone()


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
    sizes = [10, SMALL, 20, 2 * SMALL, *range(30, 60)]

    def live(board: Board) -> list[bool]:
        arenas = [Arena.create(4 * sum(sizes)) for _ in range(2)]
        board.register(arenas)
        xs, means = (arena.tensor(0, sum(sizes), torch.float32).split(sizes) for arena in arenas)
        for x in xs:
            x.copy_(numbers(board.rank, len(x)))
        tickets = [board.submit(x, mean, 0.5) for x, mean in zip(xs, means, strict=True)]
        for ticket in reversed(tickets):
            board.wait(ticket)
        return [torch.equal(mean, in_order_of_ranks(2, len(mean), torch.float32)) for mean in means]

    assert all(all(right) for right in boards(2, live))


@pytest.mark.parametrize("numel", [10, SMALL])
def test_who_waits_when_the_epoch_ends_is_told_and_still_has_its_input(numel: int) -> None:
    met = threading.Barrier(2)

    def live(board: Board) -> Any:
        x, mean = room(board, numel)
        board.wait(board.submit(x, mean, 0.5))
        met.wait(10)
        if board.rank == 1:
            return "gone"
        ticket = board.submit(x, mean, 0.5)
        threading.Timer(0.05, board.freeze).start()
        with pytest.raises(PeerLost, match="epoch of agent 0 is over"):
            board.wait(ticket)
        return board.finished(ticket), torch.equal(x, numbers(0, numel))

    assert boards(2, live) == [(False, True), "gone"]


def test_a_board_that_another_process_of_the_agent_froze_ends_too() -> None:
    over = threading.Event()
    shared = Arena.create(Board.nbytes(2))
    board = Board(shared, 0, 2, over.is_set)
    x, mean = room(board, 10)
    ticket = board.submit(x, mean, 0.5)
    over.set()
    with pytest.raises(PeerLost):
        board.wait(ticket)


@pytest.mark.parametrize("numel", [10, SMALL])
def test_a_round_that_all_have_reached_can_be_read_after_the_epochs_end(numel: int) -> None:
    """What everybody did its part of is finished, whatever the trainer had time to notice."""
    done = threading.Barrier(2)

    def live(board: Board) -> Tensor:
        x, mean = room(board, numel)
        ticket = board.submit(x, mean, 0.5)
        if numel == SMALL:
            board.wait(ticket)
        done.wait(10)
        board.freeze()
        assert board.finished(ticket)
        return board.result(ticket, torch.empty(numel)).clone()

    for got in boards(2, live):
        assert torch.equal(got, in_order_of_ranks(2, numel, torch.float32))


def test_a_tensor_that_is_not_in_shared_memory_is_refused() -> None:
    def live(board: Board) -> None:
        board.submit(torch.zeros(SMALL), torch.zeros(SMALL), 1.0)

    ends = boards(2, live)
    assert all(isinstance(e, UsageError) and "allocate it from the board" in str(e) for e in ends)


def test_more_pieces_of_memory_than_a_board_has_room_for_are_refused() -> None:
    board = Board(Arena.create(Board.nbytes(2)), 0, 2)
    with pytest.raises(UsageError, match="prepare them in one call"):
        board.register([Arena.create(1)] * 33)


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
