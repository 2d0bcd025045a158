"""Golden scripts: events to named nodes, and the effects they give, to be read. Rewritten by ``STRETTO_REWRITE=1``.

After etcd-io/raft's data-driven tests. A script is paragraphs: lines of commands, ``----``, and what they gave. A
command is an event to a node (``a2 lost a1 its connection was closed``), or ``deliver``: pass on what was sent until
nobody says anything more; ``deliver -a3``: but nothing to or from a3. Nodes are the founder ``f``, agents ``a0``,
``a1``, … and servers ``s0``, …; a second life of agent 1 is ``b1``, of server 0 ``t0``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playing import Play

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_gives_what_it_says(script: Path) -> None:
    text = script.read_text()
    play = Play()
    written = "\n".join(play.paragraph(paragraph) for paragraph in text.rstrip("\n").split("\n\n")) + "\n"
    if os.environ.get("STRETTO_REWRITE"):
        script.write_text(written.rstrip("\n") + "\n")
    assert text.rstrip("\n") == written.rstrip("\n")
