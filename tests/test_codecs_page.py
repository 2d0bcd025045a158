"""The page about codecs says what the code says."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from stretto.cli.codecs import codecs, page, rows
from stretto.text import names, parse

PAGE = Path(__file__).parents[1] / "docs" / "codecs.md"


def test_the_table_of_codecs_is_what_the_code_says() -> None:
    written = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")[2].partition("<!-- /table -->")[0]
    assert written == page(rows()), "make it anew: stretto codecs --markdown"


def test_every_codec_says_what_it_does_and_when_to_use_it() -> None:
    for name in names("codec"):
        codec = parse(name, "codec")
        assert codec.when and (type(codec).__doc__ or "").strip(), name


def test_the_command_lists_them_all() -> None:
    done = CliRunner().invoke(codecs)
    assert done.exit_code == 0 and all(name in done.output for name in names("codec") if name != "chain")
