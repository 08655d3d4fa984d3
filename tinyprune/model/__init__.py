"""The language model: operations form blocks, blocks form a Transformer; its parts, counts and gates; generation."""

from __future__ import annotations

from numpy.typing import NDArray

Parameters = dict[str, NDArray]  # by name
