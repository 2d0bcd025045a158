"""``stretto demo``: four agents learn to read digits, while you watch."""

from __future__ import annotations

import click

from stretto.cli import options, output
from stretto.cli.train import watch
from stretto.errors import Disagreement

AGENTS = 4
EPOCHS = 30
SAMPLES = 1437


@click.command()
@options.seed
@options.json
def demo(seed: int, json: str | None) -> None:
    """Watch four agents on this machine train one CNN on 1,437 real digits, in a few seconds."""
    output.check_json(json)
    job = options.job(
        "digits",
        AGENTS,
        strategy="allreduce",
        model="cnn",
        link="auto",
        batch_size=None,
        data=None,
        seed=seed,
        epochs=EPOCHS,
        seconds=None,
        target=None,
    )
    console = output.console(json)
    result = watch(console, job, AGENTS)
    output.write_json(json, result)
    if len(set(result.digests)) > 1 or result.samples != EPOCHS * SAMPLES:
        raise Disagreement(
            "the agents should hold equal weights and have trained each sample equally often; report this"
        )
    console.print("next: stretto train --help, or examples/train_digits.py for the two lines in a script of your own")
