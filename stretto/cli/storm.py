"""``stretto lab storm WORKLOAD``: train it on a laboratory's hosts, break things meanwhile, tell what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from stretto.cli import options, output
from stretto.errors import Disagreement, UsageError
from stretto.lab import trial
from stretto.lab.faults import MIX, Kind
from stretto.lab.summary import Summary
from stretto.lab.trial import Place, Result, Weather

KINDS = ",".join(f"{kind}={weight:g}" for kind, weight in MIX.items())


@click.command()
@click.argument("workload", default="digits")
@click.option("--hosts", default=4, show_default=True, help="How many.")
@click.option("--agents-per-host", default=1, show_default=True, help="Agents on each.")
@click.option("--rate", default="100mbit", show_default=True, help="Of every host's link, each way.")
@click.option("--delay", default="5ms", show_default=True, help="One way between two hosts.")
@click.option("--loss", default="0", show_default=True, help="Of packets, on each link they take.")
@click.option("--faults-per-hour", default=125.0, show_default=True, help="Of all kinds together.")
@click.option("--minutes", default=20.0, show_default=True, help="How long the storm lasts.")
@click.option("--calm", default=1.0, show_default=True, help="Minutes before it, with which it is compared.")
@click.option("--mix", default=KINDS, show_default=True, help="How often each kind of fault comes.")
@click.option("--coordinator/--no-coordinator", default=True, show_default=True, help="Whether one fault is its end.")
@options.model
@click.option("--strategy", default="allreduce", show_default=True, help="How the agents synchronise.")
@options.batch_size
@options.seed
@options.data
@click.option("--keep", metavar="DIR", help="Leave the trace, and what hosts printed, in this new folder.")
@options.json
def storm(
    workload: str,
    hosts: int,
    agents_per_host: int,
    rate: str,
    delay: str,
    loss: str,
    faults_per_hour: float,
    minutes: float,
    calm: float,
    mix: str,
    coordinator: bool,
    seed: int,
    keep: str | None,
    json: str | None,
    **chosen: Any,
) -> None:
    """Train WORKLOAD on the hosts of a laboratory, and break things meanwhile. Needs root.

    Agents and the coordinator are killed, agents are stopped, cables are cut, at moments drawn from --seed.
    """
    output.check_json(json)
    if hosts < 2 or agents_per_host < 1 or not calm > 0:
        raise UsageError("a storm needs 2 hosts or more, with an agent or more on each, and some calm before it")
    place = Place(hosts=hosts, agents_per_host=agents_per_host, rate=rate, delay=delay, loss=loss)
    weather = Weather(
        seed=seed,
        per_hour=faults_per_hour,
        seconds=60 * minutes,
        calm=60 * calm,
        mix=weights(mix),
        coordinator=coordinator,
    )
    job = options.job(
        workload,
        hosts * agents_per_host,
        link="tcp",
        seed=seed,
        epochs=None,
        seconds=weather.whole,
        target=None,
        **chosen,
    )
    console = output.console(json)
    with _folder(keep) as folder:
        result = trial.run(job, place, weather, folder, output.printer(console))
    show(console, result)
    output.write_json(json, result)
    if not result.equal or result.account.torn:
        raise Disagreement(
            f"a promise is broken: {len(set(result.digests))} digests, {len(result.account.torn)} torn rounds; run it "
            f"again with --seed {seed} --keep DIR, and report it with what is there"
        )


def _folder(keep: str | None) -> AbstractContextManager[Path]:
    """A folder for a trial: kept where asked for, else temporary."""
    if keep is None:
        return _temporary()
    try:
        Path(keep).mkdir()
    except OSError as e:
        raise UsageError(f"--keep {keep}: {e.strerror}; name a folder that can be made") from e
    return nullcontext(Path(keep).absolute())


@contextmanager
def _temporary() -> Iterator[Path]:
    with TemporaryDirectory(prefix="stretto-storm-") as name:
        yield Path(name)


def weights(text: str) -> dict[Kind, float]:
    """
    >>> weights("kill=2,cut=1")
    {'kill': 2.0, 'cut': 1.0}
    """
    found: dict[Kind, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        kind = next((known for known in MIX if known == name.strip()), None)
        try:
            share = float(weight)
        except ValueError:
            share = -1.0
        if kind is None or not 0 <= share < float("inf"):
            raise UsageError(f"--mix {text}: write kinds and weights, for example {KINDS}")
        found[kind] = share
    if not sum(found.values()):
        raise UsageError(f"--mix {text}: one weight at least must be more than 0")
    return found


def show(console: Console, result: Result) -> None:
    """The result as a table and a few lines."""
    drawn = Table(box=None, pad_edge=False)
    for name in ("fault", "times", "what followed", "median, s", "worst, s", "never"):
        drawn.add_column(name, justify="left" if name in ("fault", "what followed") else "right")
    for summary in result.faults:
        for row in rows(summary):
            drawn.add_row(*row)
    console.print(drawn)
    account = result.account
    console.print(
        f"{output.percent(account.taking_part)} of the living took part in a step (mean of {account.steps:,}); "
        f"throughput {output.percent(account.throughput)} of the living share, {output.percent(account.living)}"
    )
    console.print(f"{len(account.false_alarms)} false alarms; {len(account.torn)} torn rounds")
    for line in [*account.false_alarms, *result.proofs]:
        console.print(line, markup=False)
    equal = "equal" if result.equal else f"different: {', '.join(result.digests)}"
    console.print(
        f"accuracy {output.percent(result.accuracy)} after {result.steps:,} steps; the weights of agents "
        f"{', '.join(map(str, result.finished))} are {equal}"
    )


WORDS = {
    "next_commit": "the others' next step",
    "back": "back in the training",
    "noticed": "noticed",
    "pause": "longest pause",
}


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """One for each thing measured of a kind of fault."""
    found: list[tuple[str, ...]] = []
    for name, spread in summary.measures.items():
        numbers = ("-", "-") if spread is None else (f"{spread[0]:.2f}", f"{spread[1]:.2f}")
        found.append((summary.kind, str(summary.count), WORDS[name], *numbers, str(summary.missing[name] or "")))
    return found
