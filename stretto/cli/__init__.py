"""The command line: ``stretto COMMAND``. One module a command, imported when it is asked for.

Every command fails with one line on standard error, ``stretto: …``, and the error's own exit code; Ctrl-C gives 130.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from stretto.errors import StrettoError, UnknownName

INTERRUPTED = 130

COMMANDS = {
    "demo": "Watch four agents learn to read digits.",
    "train": "Train a workload with several agents on this machine.",
    "run": "Run your own script in several agents.",
    "server": "Hold parameters for the agents of a run.",
    "compare": "Train with several strategies in turn, and put them in one table.",
    "bench": "Measure exchanges against their physical bound and against others.",
    "codecs": "List the codecs: what each saves, loses and is for.",
    "strategies": "List the strategies: what each sends, when, to whom, and how much.",
    "simulate": "Thousands of runs in virtual time while everything goes wrong.",
    "lab": "A network of hosts on this machine, to run and to break real programs in.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            raise UnknownName("command", cmd_name, COMMANDS)
        command: click.Command = getattr(importlib.import_module(f"stretto.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="stretto", prog_name="stretto")
def stretto() -> None:
    """Distributed PyTorch training whose agents choose how they synchronise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit."""
    try:
        sys.exit(stretto.main(arguments, prog_name="stretto", standalone_mode=False) or 0)
    except StrettoError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # nobody reads any more: let the flush at exit go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    click.echo(f"stretto: {' '.join(message.split())}", err=True)
    sys.exit(code)
