"""`python -m archsearch`: the command line."""

from archsearch.cli import main

main()
