"""``stretto simulate``: thousands of runs in virtual time while everything goes wrong, and what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stretto import text
from stretto.cli import options, output
from stretto.core import Strategy
from stretto.errors import StrettoError, UnknownName, UsageError
from stretto.simulate import MIXES, Break, Setting, Tally, coded, listed, merged, storm, trace


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """``per_minute``: runs, all jobs together. ``rows``: one for each strategy."""

    command: str
    faults: str
    runs: int
    seconds: float
    per_minute: float
    rows: tuple[Tally, ...]

    @property
    def breaks(self) -> list[Break]:
        return [b for row in self.rows for b in row.breaks]


@click.command()
@click.option("--faults", default="storm", show_default=True, help=f"What goes wrong: {', '.join(MIXES)}.")
@click.option("--seeds", default=100, show_default=True, help="How many runs of each, from --seed on.")
@click.option("--strategy", help="How the agents synchronise. [default: every one, along every topology, in turn]")
@click.option("--codecs", is_flag=True, help="Every codec in turn, instead of every topology.")
@click.option("--agents", default="1..5", show_default=True, help="Least and most of them.")
@click.option("--servers", default=0, show_default=True, help="Servers beside the agents; they die as well.")
@click.option("--seed", default=0, show_default=True, help="The first one.")
@click.option("--trace", "traced", is_flag=True, help="Play the one run of --seed, event by event.")
@click.option("--jobs", type=int, help="Processes. [default: one a core]")
@click.option("--page", metavar="PATH", help="Write the result here as Markdown.")
@options.json
def simulate(
    faults: str,
    seeds: int,
    strategy: str | None,
    codecs: bool,
    agents: str,
    servers: int,
    seed: int,
    traced: bool,
    jobs: int | None,
    page: str | None,
    json: str | None,
) -> None:
    """Train in simulated runs, and kill, cut off, stop and mislead the agents meanwhile.

    Membership, sessions, exchanges and ledger are the real ones; the network, the clock and the model are simulated.
    A run that breaks a promise is shrunk to the fewest faults that still break it.
    """
    import stretto.strategies  # noqa: F401, PLC0415  registers their names

    output.check_json(json)
    output.check_json(page)
    setting = _setting(faults, agents, servers)
    if strategy is not None and codecs:
        raise UsageError("--codecs plays every codec; give either that or --strategy")
    everything = coded() if codecs else listed()
    chosen = everything if strategy is None else [text.parse(strategy, "strategy")]
    console = output.console(json)
    if traced:
        if len(chosen) > 1:
            raise UsageError("--trace plays one run: say of which --strategy, for example 'allreduce(topology=ring)'")
        _trace(console, seed, chosen[0], setting)
        return
    if seeds < 1 or (jobs is not None and jobs < 1):
        raise UsageError("give --seeds and --jobs 1 or more")
    command = f"stretto simulate --faults {faults} --seeds {seeds} --agents {agents} --seed {seed}"
    command += f" --servers {servers}" if servers else ""
    command += f" --strategy '{strategy}'" if strategy else " --codecs" if codecs else ""
    begun, runs = time.monotonic(), seeds * len(chosen)
    tallies = []
    with Live(console=console, transient=True) as live:
        work = storm(chosen, range(seed, seed + seeds), setting, jobs or len(os.sched_getaffinity(0)))
        for tally in work:
            tallies.append(tally)
            live.update(_progress(tallies, runs, time.monotonic() - begun))
    seconds = time.monotonic() - begun
    result = Result(
        command=command,
        faults=faults,
        runs=runs,
        seconds=round(seconds, 2),
        per_minute=round(60 * runs / seconds),
        rows=tuple(merged(tallies)),
    )
    show(console, result)
    output.write_json(json, result)
    if page is not None:
        Path(page).write_text(_page(result), encoding="utf-8")
    if result.breaks:
        worst = result.breaks[0]
        raise StrettoError(
            f"a promise is broken in {len(result.breaks)} of {runs} runs; look at one with: stretto simulate --faults "
            f"{faults} --agents {agents}{f' --servers {servers}' if servers else ''} --strategy '{worst.strategy}' "
            f"--seed {worst.seed} --trace"
        )


def _setting(faults: str, agents: str, servers: int) -> Setting:
    if faults not in MIXES:
        raise UnknownName("choice of --faults", faults, MIXES)
    least, _, most = agents.partition("..")
    try:
        setting = Setting(faults, int(least), int(most or least), servers)
    except ValueError:
        raise UsageError(f"--agents {agents}: write a number, or two with two dots between, for example 3..5") from None
    if not 1 <= setting.fewest <= setting.most:
        raise UsageError(f"--agents {agents}: give at least 1, and the smaller number first")
    if servers < 0:
        raise UsageError(f"--servers {servers}: give 0 or more")
    return setting


def _trace(console: Console, seed: int, strategy: Strategy, setting: Setting) -> None:
    say = output.printer(console)
    say(f"seed {seed}, {strategy}")
    error = trace(seed, strategy, setting, say)
    if error is not None:
        raise StrettoError(f"{type(error).__name__}: {error}")
    say("all promises were kept")


def _progress(tallies: list[Tally], runs: int, seconds: float) -> Text:
    done, broken = sum(t.runs for t in tallies), sum(len(t.breaks) for t in tallies)
    return Text(f"{done:,} of {runs:,} runs, {60 * done / seconds:,.0f} a minute; {broken} broken promises")


def show(console: Console, result: Result) -> None:
    """The result as a table, and every break with its schedule."""
    drawn = Table(box=None, pad_edge=False)
    for name in HEADERS:
        drawn.add_column(name, justify="left" if name == HEADERS[0] else "right")
    for row in rows(result):
        drawn.add_row(*row)
    if not console.is_terminal:
        console.width = WIDE
    console.print(drawn)
    for found in result.breaks[:10]:
        console.print(f"seed {found.seed}, {found.agents} agents, {found.strategy}: {found.why}", markup=False)
        for fault in found.faults:
            console.print(f"  {fault}", markup=False)
    console.print(f"{result.runs:,} runs in {result.seconds:,.0f} s: {result.per_minute:,.0f} a minute")


ABOUT = """\
Each run is a training of up to five agents and their coordinator, with the real membership, session, exchanges and
ledger, on a network and a clock that are simulated. Agents and the coordinator are killed (also at the n-th message
they send, or without a word), started again, cut off, stopped and misled. In every run is checked:

* there is one chain of views, and a majority wanted each;
* members of a view that applied a step applied the same bits;
* nobody gives its state to others who was not healed;
* every sample is trained exactly once an epoch;
* the final weights are within 1e-12 of those of one process that trains the same, where no codec loses anything and
  they follow from who trained what between two agreements of all (`allreduce`, `local_sgd`, `diloco`, …);
* pushes to servers are linearisable slot by slot: what is acknowledged is in the history that all end with, once;
  whatever is read is in it, and is never older than what the same agent had read before (a step of all that a death
  undoes nobody has read whole); nobody goes on further ahead than the bound; holders of a slot have the same bits; and
  the final weights follow from what each push was computed with;
* the training ends soon after the faults do, where somebody lives who has the model.

*Impossible*: nobody who lived had the model any more, all were lost who had copies of a slot, too few were left to
vote, or all had left. *Torn leaves*: agents that ended in the moment of a view change and have one step more than the
others."""
WIDE = 200
HEADERS = ("strategy", "runs", "faults", "steps", "ended", "impossible", "torn leaves", "broken")


def rows(result: Result) -> Iterator[tuple[str, ...]]:
    """``impossible``: nobody who lived had the model, or too few were left to vote."""
    for t in result.rows:
        ended, struck = t.outcomes.get("ended", 0), sum(t.faults.values())
        others = sum(t.outcomes.values()) - ended
        numbers = (t.runs, struck, t.steps, ended, others, t.torn, len(t.breaks))
        yield (t.strategy, *(f"{n:,}" for n in numbers))


def _page(result: Result) -> str:
    lines = [
        "# Simulated storms",
        "",
        f"Written by `{result.command} --page PATH`: {result.runs:,} runs in {result.seconds:,.0f} s "
        f"({result.per_minute:,} a minute on {len(os.sched_getaffinity(0))} cores).",
        "",
        ABOUT,
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|" + " --- |" * len(HEADERS),
        *("| " + " | ".join(row) + " |" for row in rows(result)),
    ]
    return "\n".join(lines) + "\n"
