"""The memory: a layer's inputs before the segment, which attention reads as further context. (Dai et al. 2019)"""

from __future__ import annotations

from numpy.typing import NDArray

from tinyprune.config import ModelConfig

Memory = list[NDArray]  # for each layer (B, up to M, D)


class Released(Memory):
    """Memory that nobody else needs: each layer takes its own out of the list, which frees it before backward."""


def check_memory(memory: Memory | None, B: int, config: ModelConfig) -> None:
    """Raise ValueError unless `memory` is None, empty, or one (B, up to M, D) for each layer."""
    if not memory:
        return
    good = (m.ndim == 3 and m.shape[0] == B and m.shape[1] <= config.M and m.shape[2] == config.D for m in memory)
    if len(memory) != config.L or not all(good):
        raise ValueError(
            f"memory must be {config.L} arrays of ({B}, up to {config.M}, {config.D}), got {[m.shape for m in memory]}"
        )


def remember(x: NDArray, context: NDArray, M: int) -> NDArray:
    """Return the latest M inputs of a layer as plain numbers, without derivatives.

    Args:
        x: the segment's, (B, T, D).
        context: those of memory and segment, (B, S, D).

    Returns:
        (B, up to M, D), a view of x if that is long enough, so that nothing else is kept alive.
    """
    latest = x if x.shape[1] >= M else context
    return latest[:, -M:].real
