"""`python -m jobs`: the command line, where its script is not installed."""

from jobs.cli import main

main()
