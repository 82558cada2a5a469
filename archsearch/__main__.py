"""`python -m archsearch`: the command line."""

from archsearch.cli import main

if __name__ == "__main__":  # a process that an export starts imports this file under another name
    main()
