"""The command line: ``python -m cpuinfer_helpers doctor``."""

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
        Exit code: 0 if all is well, 1 if a check failed.
    """
    parser = argparse.ArgumentParser(prog="python -m cpuinfer_helpers", description="Transformer inference on a CPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what this machine can do, and whether the installed versions fit together")
    parser.parse_args(arguments)
    return doctor()


def doctor() -> int:
    """Print one line for each check; return 1 if any of them failed."""
    from cpuinfer_helpers.doctor import diagnose

    diagnosis = diagnose()
    print(diagnosis)
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
