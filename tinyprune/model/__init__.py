"""The language model: operations wired into blocks, blocks into a Transformer; its parameters, counted; generation."""

from __future__ import annotations

from numpy.typing import NDArray

Parameters = dict[str, NDArray]  # by name
