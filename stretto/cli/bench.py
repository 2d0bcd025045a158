"""``stretto bench WHAT``: measurements, each a table with goals and one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from stretto.bench import allreduce as allreduces
from stretto.bench import beside_python, memory, push_pull, scale, server, step, stragglers
from stretto.bench import codec as codecs
from stretto.bench import overlap as overlaps
from stretto.bench.report import CORE, Heading, Machine, Section, machine, page
from stretto.cli import options, output
from stretto.errors import UnknownName, UsageError

Say = Callable[[str], None]
LINKS = ("tcp", "shm")
WIDE = 200
"""Columns of a table that goes into a file."""
SECTION = "stretto.bench.section"
SIZES = tuple(allreduces.SIZES)
PUSHED = tuple(push_pull.SIZES)
MODELS = tuple(step.MODELS)


@click.group()
def bench() -> None:
    """Measure exchanges against their physical bound and against others."""


agents = click.option("--agents", default="2,4", show_default=True, help="How many agents, between commas.")
links = click.option("--link", default=",".join(LINKS), show_default=True, help="Which links, between commas.")


@bench.command()
@agents
@links
@click.option("--sizes", default=",".join(SIZES).replace(" ", ""), show_default=True, help="Between commas.")
@options.json
def allreduce(agents: str, link: str, sizes: str, json: str | None) -> None:
    """The mean of one tensor, against Gloo and Open MPI."""
    counts, chosen, lengths = _counts(agents), _names("link", link, LINKS), _names("sizes", sizes, SIZES)
    command = f"stretto bench allreduce --agents {agents} --link {link} --sizes {sizes}"
    _measure(json, lambda say: allreduces.run(counts, chosen, lengths, command, say))


@bench.command("step")
@agents
@links
@click.option("--models", default=",".join(MODELS), show_default=True, help="Between commas.")
@options.json
def step_(agents: str, link: str, models: str, json: str | None) -> None:
    """Training steps, against DDP and against no exchange at all."""
    counts, chosen, names = _counts(agents), _names("link", link, LINKS), _names("models", models, MODELS)
    command = f"stretto bench step --agents {agents} --link {link} --models {models}"
    _measure(json, lambda say: step.run(counts, chosen, names, command, say))


@bench.command()
@options.json
def overlap(json: str | None) -> None:
    """How much of the exchange hides behind backward."""
    _measure(json, lambda say: overlaps.run("stretto bench overlap", say))


@bench.command()
@options.json
def python(json: str | None) -> None:
    """An exchange while the training thread runs Python."""
    _measure(json, lambda say: beside_python.run("stretto bench python", say))


@bench.command("memory")
@options.json
def memory_(json: str | None) -> None:
    """What an agent's processes take, in copies of its gradients."""
    _measure(json, lambda say: memory.run("stretto bench memory", say))


@bench.command("codec")
@options.json
def codec_(json: str | None) -> None:
    """What every codec costs, saves and loses, on one core."""
    _measure(json, lambda say: codecs.run("stretto bench codec", say))


@bench.command("scale")
@click.option("--agents", default="4,8,16,32,64", show_default=True, help="How many agents, between commas.")
@options.json
def scale_(agents: str, json: str | None) -> None:
    """Cost, connections and bytes of an agent as agents are added; here, and in the simulator."""
    counts = _counts(agents)
    _measure(json, lambda say: scale.run(counts, f"stretto bench scale --agents {agents}", say))


@bench.command("server")
@click.option("--only", default=",".join(server.PARTS), show_default=True, help="Which tables, between commas.")
@links
@click.option("--sizes", default=",".join(PUSHED).replace(" ", ""), show_default=True, help="Of push-pull.")
@click.option("--rounds", type=int, help="So many in place of the usual ones.")
@options.data
@click.option("--folder", metavar="DIR", help="Write server.md and server.json here.")
def server_(only: str, link: str, sizes: str, rounds: int | None, data: str | None, folder: str | None) -> None:
    """The parameter server, against others; against dense pushes; and with a slow agent. Needs root for the last.

    With fashion-mnist in --data the slow agent trains that, else digits.
    """
    parts, lengths = _names("only", only, tuple(server.PARTS)), _names("sizes", sizes, PUSHED)
    chosen = _names("link", link, LINKS)
    _check_folder(folder)
    found = stragglers.LARGE.find(Path(data)) if data and "stragglers" in parts else None
    console, where = output.console(None), machine()
    sections = []
    for part in parts:
        sections.append(server.PARTS[part](server.Ask(chosen, lengths, rounds, found), output.printer(console)))
        _print(console, sections[-1])
    if folder is not None:
        _write(folder, server.HEADING, where, sections)


@bench.command("all")
@click.option("--folder", metavar="DIR", help="Write core.md and core.json here.")
@click.pass_context
def all_(context: click.Context, folder: str | None) -> None:
    """Everything, one after another; about ten minutes."""
    _check_folder(folder)
    where = machine()
    sections = []
    for command in (allreduce, step_, overlap, python, memory_, scale_, codec_):
        context.invoke(command)
        sections.append(context.meta[SECTION])
    if folder is not None:
        _write(folder, CORE, where, sections)


def _check_folder(folder: str | None) -> None:
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"--folder {folder}: there is no such directory; make it first")


def _write(folder: str, heading: Heading, where: Machine, sections: Sequence[Section]) -> None:
    (Path(folder) / f"{heading.name}.md").write_text(page(sections, where, heading), encoding="utf-8")
    output.write_json(str(Path(folder) / f"{heading.name}.json"), {"machine": where, "sections": sections})
    output.console(None).print(f"written: {folder}/{heading.name}.md and {heading.name}.json")


def _counts(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--agents {text}: write numbers between commas, for example 2,4") from None
    if min(found) < 2:
        raise UsageError(f"--agents {text}: an exchange needs at least 2")
    return found


def _names(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    spelled = {name.lower().replace(" ", ""): name for name in known}
    found = [part.strip().lower().replace(" ", "") for part in text.split(",")]
    for part in found:
        if part not in spelled:
            raise UnknownName(f"choice of --{option}", part, spelled)
    return [spelled[part] for part in found]


def _measure(json: str | None, measure: Callable[[Say], Section]) -> None:
    output.check_json(json)
    console, where = output.console(json), machine()
    section = measure(output.printer(console))
    _print(console, section)
    output.write_json(json, {"machine": where, "section": section})
    click.get_current_context().meta[SECTION] = section


def _print(console: Console, section: Section) -> None:
    drawn = Table(box=None, pad_edge=False, title=section.title, title_justify="left")
    for header in section.headers:
        drawn.add_column(header, overflow="fold")
    for row in section.cells:
        drawn.add_row(*row)
    if not console.is_terminal:
        console.width = WIDE
    console.print(drawn)
    if section.about:
        console.print(section.about.replace("`", ""), markup=False)
