"""``stretto codecs``: what codecs there are, read off the code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click

from stretto.cli import output
from stretto.errors import UsageError

_SIDE: Final = 1024
"""The ratio is that of a square matrix of this side."""
_COMPOSED: Final = ("topk(0.01)+int4", "feedback(topk(0.01)+int4)")
"""Shown beside what is listed by name."""


class Row(NamedTuple):
    """A line of the table, in words."""

    codec: str
    does: str
    ratio: str
    unbiased: str
    feedback: str
    travels: str
    paper: str
    when: str


HEADERS: Final = ("codec", "does", "ratio", "unbiased", "feedback", "travels", "paper", "when")


@click.command("codecs")
@click.option("--markdown", is_flag=True, help="As a page has it.")
def codecs(markdown: bool) -> None:
    """List the codecs: what each saves, loses and is for."""
    found = rows()
    if markdown:
        click.echo(page(found), nl=False)
        return
    from rich.table import Table  # noqa: PLC0415

    console = output.console(None)
    drawn = Table(box=None, pad_edge=False)
    for name in ("codec", "ratio", "unbiased", "feedback", "summed"):
        drawn.add_column(name, no_wrap=True)
    drawn.add_column("when")
    for row in found:
        summed = "yes" if row.travels.startswith("summed") else "no"
        drawn.add_row(row.codec, row.ratio, row.unbiased, row.feedback, summed, row.when)
    console.print(drawn)


def rows() -> list[Row]:
    """Every codec that is registered, as its name alone makes it, and some that are composed."""
    import stretto.codecs  # noqa: F401, PLC0415  registers their names
    from stretto.text import names, parse  # noqa: PLC0415

    return [_row(parse(text, "codec")) for text in (*names("codec"), *_COMPOSED)]


def page(found: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS)]
    lines += ["| " + " | ".join((f"`{row.codec}`", *row[1:])) + " |" for row in found]
    return "\n".join(lines) + "\n"


def _row(codec: Any) -> Row:
    from torch import float32  # noqa: PLC0415

    from stretto.core import Like, Named  # noqa: PLC0415

    like = Like((_SIDE * _SIDE,), float32, (Named("weight", (_SIDE, _SIDE)),))
    ratio = 4 * like.numel / codec.size(like)
    return Row(
        codec=str(codec),
        does=(type(codec).__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ").replace("``", "`"),
        ratio=f"{'' if codec.exact else '≥ '}{ratio:.3g}",
        unbiased="yes" if codec.unbiased else "no",
        feedback=_feeds(codec),
        travels=_travels(codec),
        paper=codec.paper,
        when=codec.when,
    )


def _feeds(codec: Any) -> str:
    from stretto.codecs import Feedback  # noqa: PLC0415

    if isinstance(codec, Feedback):
        return "inside"
    try:
        Feedback(codec)
    except UsageError:
        return "cannot be"
    return "can be"


def _travels(codec: Any) -> str:
    if codec.summable:
        return "summed on the way" + (f", in {codec.passes} passes" if codec.passes > 1 else "")
    return "by owners, encoded twice"
