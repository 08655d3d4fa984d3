"""The language model: operations form blocks, blocks form a Transformer; parameter counts; generation."""

from __future__ import annotations

from numpy.typing import NDArray

Parameters = dict[str, NDArray]  # by name
