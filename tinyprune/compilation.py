"""Tell the user while kernels are compiled: for the CPU once on a machine, for a GPU at every start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

from tinyprune.kernels.backend import Backend
from tinyprune.progress import silent


@contextmanager
def announced(ops: Backend) -> Iterator[None]:
    """Say, on standard error, that the backend `ops` compiles, and on a terminal show what; nothing if it does not.

    Args:
        ops: a backend's operations, see `get_backend`.
    """
    with ExitStack() as stack:
        bars: list[tqdm] = []

        def tell(name: str) -> None:
            if not bars:
                print(f"tinyprune: {ops.compiling}", file=sys.stderr, flush=True)
                form = "{n} functions in {elapsed}{postfix}"
                bars.append(
                    stack.enter_context(tqdm(bar_format=form, dynamic_ncols=True, leave=False, disable=silent()))
                )
            bars[0].set_postfix_str(name, refresh=False)
            bars[0].update()

        stack.enter_context(ops.compilations(tell))
        yield
