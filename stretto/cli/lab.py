"""``stretto lab …``: hosts on this machine and a network between them, to run real programs in and to break them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click
import msgspec

from stretto.cli import output
from stretto.cli.storm import storm
from stretto.errors import UsageError
from stretto.lab import switch
from stretto.lab.laboratory import subnet_of
from stretto.lab.quantities import line
from stretto.lab.switch import EVERY, Switch

NAME = "lab"


@click.group()
def lab() -> None:
    """A network of hosts on this machine, to run and to break real programs in.

    \b
    stretto lab up --hosts 4 --rate 100mbit --delay 5ms
    stretto lab exec 0 -- python server.py
    stretto lab cut 2; sleep 5; stretto lab heal 2
    stretto lab down
    """


name_option = click.option("--name", default=NAME, show_default=True, help="Which laboratory, where there are several.")


def link_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The four numbers of a link, as texts."""
    for option in (
        click.option("--queue", metavar="SIZE", help="Of a host's way down; more is dropped: 1MiB."),
        click.option("--loss", metavar="SHARE", help="Of packets, on each link they take: 0.5%."),
        click.option("--delay", metavar="TIME", help="One way between two hosts: 5ms."),
        click.option("--rate", metavar="RATE", help="Each way: 100mbit."),
    ):
        command = option(command)
    return command


@lab.command()
@click.option("--hosts", default=4, show_default=True, help="How many.")
@link_options
@click.option("--congestion", metavar="NAME", help="TCP's congestion control there. [default: this machine's]")
@name_option
def up(hosts: int, congestion: str | None, name: str, **link: str | None) -> None:
    """Make the network; it stays until `stretto lab down`."""
    wanted = line(**link)
    with switch.serve(name, hosts, subnet_of(os.getpid()), owned=False, congestion=congestion) as process:
        made = Switch(name)
        made.set(EVERY, wanted)
        process.returncode = 0  # it outlives us: nobody waits for it here
    output.console(None).print(f"hosts 0 to {hosts - 1} are {made.address(0)} to {made.address(hosts - 1)}")


@lab.command("set")
@click.argument("host")
@link_options
@name_option
def set_(host: str, name: str, **link: str | None) -> None:
    """Change the link of HOST, a number or `all`, while programs run."""
    if not any(link.values()):
        raise UsageError("nothing to change; give --rate, --delay, --loss or --queue")
    Switch(name).set(_host(host), line(**link))


@lab.command()
@click.argument("host")
@click.argument("other", default="all")
@name_option
def cut(host: str, other: str, name: str) -> None:
    """Pull the cable of HOST: silence, no reset; given OTHER, only between the two."""
    Switch(name).cut(_host(host), _host(other))


@lab.command()
@click.argument("host")
@click.argument("other", default="all")
@name_option
def heal(host: str, other: str, name: str) -> None:
    """Put it back."""
    Switch(name).cut(_host(host), _host(other), yes=False)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@name_option
@click.argument("host", type=int)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(host: int, command: tuple[str, ...], name: str) -> None:
    """Run COMMAND on HOST."""
    if host < 0:
        raise UsageError(f"there is no host {host}; hosts are numbered from 0")
    words = Switch(name).inside(host, command[1:] if command[0] == "--" else command)
    os.execv(words[0], words)


@lab.command()
@name_option
def stats(name: str) -> None:
    """What passed each host's link, as JSON."""
    click.echo(msgspec.json.encode(Switch(name).stats()).decode())


@lab.command()
@name_option
def down(name: str) -> None:
    """Take the network down, and end every process on it."""
    Switch(name).stop()


def _host(text: str) -> int:
    if text == "all":
        return EVERY
    if not text.isdigit():
        raise UsageError(f"{text!r} is no host; give its number, or all")
    return int(text)


lab.add_command(storm)
