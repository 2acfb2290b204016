"""The command line: ``python -m cpuinfer_helpers doctor | compare | optimize | generate | run-qa``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments
        The words after the program's name; those of this process unless given.

    Returns
    -------
    int
        Exit code: 0 if all is well, 1 if a check failed, 2 if the request cannot be carried out.
    """
    from cpuinfer_helpers.commands import compare, generate
    from cpuinfer_helpers.commands import optimize as optimize_command
    from cpuinfer_helpers.machine.scratch import sweep

    sweep()
    parser = argparse.ArgumentParser(prog="python -m cpuinfer_helpers", description="Transformer inference on a CPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what this machine can do, and whether the installed versions fit together")
    comparing = commands.add_parser("compare", help="every recipe side by side on a task: speed, memory and accuracy")
    compare.add_arguments(comparing)
    optimizing = commands.add_parser("optimize", help="the fastest recipe that keeps a model's answers; save it")
    optimize_command.add_arguments(optimizing)
    generating = commands.add_parser("generate", help="have a language model continue a text, as it is written")
    generate.add_arguments(generating)
    commands.add_parser("run-qa", help="the guide's run_qa: evaluate a question answering model", add_help=False)
    # Its options are those of transformers, which takes seconds to import.
    options, others = parser.parse_known_args(arguments)
    if options.command == "run-qa":
        from cpuinfer_helpers import run_qa

        return run_qa.main(others)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    run = {"compare": compare.run, "optimize": optimize_command.run, "generate": generate.run}
    return run[options.command](options) if options.command in run else doctor()


def doctor() -> int:
    """Print one line for each check; return 1 if any of them failed."""
    from cpuinfer_helpers.commands.doctor import diagnose

    diagnosis = diagnose()
    print(diagnosis)
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
