"""``stretto bench server``: what the parameter server reaches, table by table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from stretto.bench import push_pull, sparse, stragglers
from stretto.bench.report import Heading, Section

HEADING: Final = Heading(
    "What the parameter server reaches",
    "stretto bench server --folder docs/results",
    "server",
    "One thread a process. Contenders take turns, the order rotates. A time lasts from the last agent's beginning to\n"
    "the last one's end. Numbers are medians, with quartiles in brackets; a ratio is the median of the rounds' ratios.",
)


@dataclass(frozen=True, slots=True)
class Ask:
    """``links`` and ``sizes`` to push and pull; ``rounds`` in place of the usual ones; ``data``: of the larger task."""

    links: Sequence[str]
    sizes: Sequence[str]
    rounds: int | None
    data: Path | None

    def command(self, part: str, **more: str) -> str:
        """What measures that part alone, again."""
        given = more | ({} if self.rounds is None else {"rounds": str(self.rounds)})
        return f"stretto bench server --only {part}" + "".join(f" --{name} {value}" for name, value in given.items())


Part: TypeAlias = Callable[[Ask, Callable[[str], None]], Section]


def _push_pull(ask: Ask, say: Callable[[str], None]) -> Section:
    sizes = ",".join(ask.sizes).replace(" ", "")
    command = ask.command("push-pull", link=",".join(ask.links), sizes=sizes)
    return push_pull.run(ask.links, ask.sizes, command, say, ask.rounds)


def _sparse(ask: Ask, say: Callable[[str], None]) -> Section:
    return sparse.run(ask.command("sparse"), say, ask.rounds)


def _stragglers(ask: Ask, say: Callable[[str], None]) -> Section:
    return stragglers.run(ask.command("stragglers"), say, ask.data, ask.rounds)


PARTS: Final[Mapping[str, Part]] = MappingProxyType(
    {"push-pull": _push_pull, "sparse": _sparse, "stragglers": _stragglers}
)
