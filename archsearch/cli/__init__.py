"""The `archsearch` command. Results go to stdout, everything else to stderr; exit codes: 0 done, 1 failed, 2 wrong usage.

Only typer is imported here: a command imports what it needs when it runs, so that `--help` answers at once.
"""

from archsearch.cli.app import main

__all__ = ["main"]
