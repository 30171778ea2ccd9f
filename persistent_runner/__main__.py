"""`python -m persistent_runner` is `persistent-runner`."""

from persistent_runner.cli import main

main(prog_name="persistent-runner")
