"""``python -m stretto.cli``: the command line, where no script of it is installed."""

from stretto.cli import main

main()
