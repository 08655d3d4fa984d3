"""The command line: it parses arguments (`parser`), calls the package and prints the results."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import ExitStack, redirect_stderr, suppress
from pathlib import Path
from typing import Any

from tinyprune.errors import TinypruneError


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0, 1 for a failure, 2 for bad usage, 130 after Ctrl-C."""
    # Show "?" for what the terminal's encoding lacks, rather than fail.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    arguments = argparse.Namespace()
    if argv is None:  # else signals are the caller's
        stop_as_by_ctrl_c(arguments)
    try:
        try:
            # imported here, so that Ctrl-C is understood meanwhile
            from tinyprune.kernels.machine import processors

            if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.7 * processors():
                # threads of NumPy's products spin while they wait, on a busy machine many times as long as they compute
                os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            from tinyprune.cli.parser import build_parser

            parser = build_parser()
            if "_ARGCOMPLETE" in os.environ:  # the shell asks what could be typed next
                import argcomplete

                argcomplete.autocomplete(parser)
            arguments = parser.parse_args(argv, arguments)
            # All lines and bars go to standard error, and none is drawn where there is no terminal. Errors are printed
            # below, so that nothing else has to know that the user wants quiet.
            with ExitStack() as stack:
                if arguments.quiet:
                    nowhere = stack.enter_context(Path(os.devnull).open("w"))
                    stack.enter_context(redirect_stderr(nowhere))
                arguments.run(arguments)
        finally:
            # A closed output is noticed here, and not only when Python exits.
            print(end="", flush=True)
    except TinypruneError as error:
        return complain(error, error.exit_status)
    except KeyboardInterrupt:
        return complain(interrupted(arguments), 130)
    except BrokenPipeError:  # the reader has gone (`| head`)
        give_up_output()
        return 1
    except OSError as error:
        give_up_output()
        return complain(error, 1)
    except MemoryError as error:
        return complain(f"out of memory: {error}; make B, T, M, D, L or the vocabulary smaller", 1)
    except Exception as error:
        if not after_a_stop(error):
            raise
        return complain(interrupted(arguments), 130)
    return 0


def after_a_stop(error: BaseException | None) -> bool:
    """Return whether an error came while a stop was on its way up, as of a lock that it had kept from being made."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def stop_as_by_ctrl_c(arguments: argparse.Namespace) -> None:
    """Let SIGTERM and SIGHUP stop the program as Ctrl-C does, and let Python lose no such stop.

    What is raised in a finaliser (`__del__`) or a callback only goes to `sys.unraisablehook`: the work would go on.
    """
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows has no SIGHUP
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has asked for
            signal.signal(number, signal.default_int_handler)

    def stop(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(lost)
            return
        with suppress(OSError):  # not print: another write may be under way, and the terminal may be closed
            os.write(2, f"tinyprune: {interrupted(arguments)}\n".encode())
        os._exit(130)

    sys.unraisablehook = stop


def interrupted(arguments: argparse.Namespace) -> str:
    """Return what is said after a stop."""
    kept = "; every checkpoint is whole, --resume goes on from the last" if "resume" in arguments else ""
    return f"interrupted{kept}"


def complain(message: object, status: int) -> int:
    """Print one line on standard error, as an error unless the user stopped it (status 130); return `status`."""
    kind = "" if status == 130 else "error: "
    print(f"tinyprune: {kind}{' '.join(str(message).split())}", file=sys.stderr)
    return status


def give_up_output() -> None:
    """Discard what is left for a closed standard output, or Python would report it once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
