"""What a person runs: the command line, the run configuration, the demo."""
