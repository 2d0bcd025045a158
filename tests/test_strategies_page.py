"""The page about strategies says what the code says, and what each says of its bytes is what links carry."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import stretto
from stretto import strategies
from stretto.cli.strategies import AGENTS, PARAMETERS, Row, page, rows
from stretto.cli.strategies import strategies as command
from stretto.core import Like, Strategy
from stretto.text import names, parse

PAGE = Path(__file__).parents[1] / "docs" / "strategies.md"
ABOUT = 0.05
"""Flags, weights, notices and the numbers of push-sum ride along, and questions that cross are not answered."""


@pytest.fixture(scope="module")
def found() -> list[Row]:
    return rows()


def told(strategy: Strategy) -> float:
    """How many an agent tells in a mixing, the mean over agents; 0 where there is no graph."""
    graph = getattr(strategy.beside and strategy.beside.mixing, "graph", None)
    return sum(len(graph.row(rank, AGENTS, 0).tells) for rank in range(AGENTS)) / AGENTS if graph else 0.0


def meanings(strategy: Strategy) -> dict[str, Any]:
    """What stands in the formulas, beside a strategy's own arguments."""
    size = strategy.codec.size(Like((PARAMETERS,), torch.float32))
    return {"n": AGENTS, "m": 2, "S": size, "B": 4 * PARAMETERS, "k": told(strategy)}


def test_the_table_of_strategies_is_what_the_code_says(found: list[Row]) -> None:
    written = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")[2].partition("<!-- /table -->")[0]
    assert written == page(found), "make it anew: stretto strategies --markdown"


@pytest.mark.parametrize("name", names("strategy"))
def test_as_many_bytes_are_sent_as_the_formula_says(found: list[Row], name: str) -> None:
    (row,) = (row for row in found if row.strategy == name)
    maker, strategy = vars(strategies)[name], parse(name, "strategy")
    arguments = {p.name: p.default for p in inspect.signature(maker).parameters.values()}
    wanted = eval(row.formula, {}, arguments | meanings(strategy))
    assert row.measured == pytest.approx(wanted, rel=ABOUT)


def test_every_strategy_says_what_it_is_for_and_what_a_death_costs(found: list[Row]) -> None:
    for row in found:
        assert row.formula and row.death and row.use, row.strategy


def test_every_strategy_but_the_plain_mean_names_its_paper(found: list[Row]) -> None:
    assert [row.strategy for row in found if not row.paper] == ["allreduce"]


def test_every_strategy_is_at_hand() -> None:
    assert set(names("strategy")) <= set(stretto.__all__) & set(strategies.__all__)


def test_the_command_lists_them_all() -> None:
    done = CliRunner().invoke(command, ["--agents", "2", "--parameters", "64"])
    assert done.exit_code == 0 and all(name in done.output for name in names("strategy"))


def test_too_few_to_send_anything_are_refused() -> None:
    assert "give at least 2" in str(CliRunner().invoke(command, ["--agents", "1"]).exception)
