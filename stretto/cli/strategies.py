"""``stretto strategies``: what strategies there are, read off their values and docstrings, and what each sends."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from stretto.cli import output

if TYPE_CHECKING:
    from stretto.core import Strategy

AGENTS: Final = 4
PARAMETERS: Final = 131072
"""So few are simulated quickly, and what rides along with so many counts little."""
_MANY: Final = 1.5


class Row(NamedTuple):
    """A line of the table, in words.

    ``formula``: bytes that an agent sends a step, as an expression in Python; ``measured``: the same, counted.
    """

    strategy: str
    sent: str
    when: str
    whom: str
    formula: str
    measured: float
    stale: str
    death: str
    paper: str
    use: str


HEADERS: Final = (
    "strategy", "sent", "when", "to whom", "bytes a step", "measured", "stale by", "a death costs", "paper",
    "use it when",
)  # fmt: skip


@click.command("strategies")
@click.option("--markdown", is_flag=True, help="As a page has it.")
@click.option("--agents", default=AGENTS, show_default=True, help="How many are simulated.")
@click.option("--parameters", default=PARAMETERS, show_default=True, help="Of their model.")
def strategies(markdown: bool, agents: int, parameters: int) -> None:
    """List the strategies: what each sends, to whom, and how much of it in a simulated run."""
    found = rows(agents, parameters)
    if markdown:
        click.echo(page(found), nl=False)
        return
    from rich.table import Table  # noqa: PLC0415

    console = output.console(None)
    drawn = Table(box=None, pad_edge=False)
    for name in ("strategy", "bytes a step", "stale by"):
        drawn.add_column(name, no_wrap=True)
    drawn.add_column("use it when")
    for row in found:
        drawn.add_row(row.strategy, _less(row, found), _plain(row.stale), row.use)
    console.print(drawn)


def rows(agents: int = AGENTS, parameters: int = PARAMETERS) -> list[Row]:
    """Every strategy that is registered, as its name alone makes it. What it sends is simulated, which takes seconds.

    Raises:
        UsageError: too few agents or parameters for anything to be sent.
    """
    import stretto.strategies  # noqa: PLC0415
    from stretto.text import names, parse  # noqa: PLC0415

    makers = vars(stretto.strategies)
    return [
        _row(name, inspect.getdoc(makers[name]) or "", parse(name, "strategy"), agents, parameters)
        for name in names("strategy")
    ]


def page(found: Sequence[Row]) -> str:
    """The table as Markdown, and what a death costs with each."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS)]
    for row in found:
        formula = "`" + row.formula.replace(" * ", "·").replace(" / ", "/") + "`"
        death = re.split(r"(?<=\.)\s", row.death)[0]
        cells = (f"`{row.strategy}`", row.sent, row.when, row.whom, formula, _less(row, found), row.stale, death)
        lines.append("| " + " | ".join((*cells, row.paper, row.use)) + " |")
    return "\n".join([*lines, "", *(f"* `{row.strategy}`: {row.death}" for row in found)]) + "\n"


def _row(name: str, doc: str, strategy: Strategy, agents: int, parameters: int) -> Row:
    from stretto.simulate.traffic import sent  # noqa: PLC0415

    paragraphs = [" ".join(part.split()).replace("``", "`") for part in doc.split("\n\n")]
    return Row(
        strategy=name,
        sent=strategy.signal + _by(str(strategy.codec)),
        when=_when(strategy),
        whom=_whom(strategy),
        formula=_after("Bytes: ", paragraphs),
        measured=sent(_along_ring(strategy), agents, parameters),
        stale=_stale(strategy),
        death=_after("A death costs ", paragraphs),
        paper=next((p for p in paragraphs if "arXiv" in p and not p.startswith("A death")), ""),
        use=_after("When: ", paragraphs),
    )


def _after(beginning: str, paragraphs: Sequence[str]) -> str:
    return next((p.removeprefix(beginning) for p in paragraphs if p.startswith(beginning)), "")


def _by(codec: str) -> str:
    return "" if codec == "identity" else f", by `{codec}`"


def _along_ring(strategy: Strategy) -> Strategy:
    """``auto`` sends small tensors whole, to save delays: the simulated ones would be."""
    from stretto.exchanges import AllReduce  # noqa: PLC0415
    from stretto.topologies import Ring  # noqa: PLC0415

    exchange = strategy.exchange
    if not isinstance(exchange, AllReduce):
        return strategy
    return dataclasses.replace(strategy, exchange=dataclasses.replace(exchange, topology=Ring()))


def _when(strategy: Strategy) -> str:
    agreed = _every(strategy.schedule)
    if strategy.beside is None:
        return agreed
    return f"{_every(strategy.beside.schedule)}; all agree {agreed}"


def _whom(strategy: Strategy) -> str:
    from stretto.server import Server  # noqa: PLC0415

    if isinstance(strategy.exchange, Server):
        return "servers"
    if strategy.beside is None:
        return "all"
    return f"`{strategy.beside.mixing}`" + ("; all" if strategy.schedule.fragments else "")


def _every(schedule: Any) -> str:
    """Its text, with all its arguments."""
    values = ", ".join(map(str, dataclasses.astuple(schedule)))
    return f"`{str(schedule).partition('(')[0]}({values})`"


def _stale(strategy: Strategy) -> str:
    from stretto.core import Served  # noqa: PLC0415
    from stretto.server import Server  # noqa: PLC0415

    beside, behind, exchange = strategy.beside, strategy.landing.behind, strategy.exchange
    if isinstance(exchange, Server):
        bound = exchange.staleness
        return "nothing" if bound == 0 else "what others push meanwhile" + (f", {bound} steps ahead" if bound else "")
    if beside is None:
        return "nothing" if not behind else f"{behind} step{'s' if behind > 1 else ''}"
    return f"one turn of {_every(beside.schedule)}" if isinstance(beside.mixing, Served) else "nothing"


def _less(row: Row, found: Sequence[Row]) -> str:
    """Bytes, and what part of those of gradients at every step that is."""
    whole = next(other.measured for other in found if other.strategy == "allreduce")
    times = whole / row.measured
    part = f"1/{times:,.0f}" if times > _MANY else f"{1 / times:.2g}"
    return f"{row.measured:,.0f}" + (f" ({part})" if row.strategy != "allreduce" else "")


def _plain(cell: str) -> str:
    return cell.replace("`", "")
