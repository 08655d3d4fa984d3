"""The command line: it parses arguments (`parser`), calls the package and prints the results."""

from __future__ import annotations

import os
import sys

from tinyprune.cli.output import complain, give_up_output
from tinyprune.cli.parser import build_parser
from tinyprune.errors import TinypruneError


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for a failure, 2 for bad usage, 130 after Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):  # show "?" for what the terminal's encoding lacks, rather than fail
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            parser = build_parser()
            if "_ARGCOMPLETE" in os.environ:  # the shell asks what could be typed next
                import argcomplete

                argcomplete.autocomplete(parser)
            arguments = parser.parse_args(argv)
            arguments.run(arguments)
        finally:
            # A closed output is noticed here, and not only when Python exits.
            print(end="", flush=True)
    except TinypruneError as error:
        return complain(error, error.exit_status)
    except KeyboardInterrupt:
        return complain("interrupted; every checkpoint is whole, --resume goes on from the last", 130)
    except BrokenPipeError:  # the reader has gone (`| head`)
        give_up_output()
        return 1
    except OSError as error:
        give_up_output()
        return complain(error, 1)
    except MemoryError as error:
        return complain(f"out of memory: {error}; make B, T, M, D, L or the vocabulary smaller", 1)
    return 0
