"""Text: corpora, tokenizers, splits, and the contiguous segments that a memory needs.

text = load_text(DataConfig(corpus="pydoc"))
segments = Segments(text.train, B=16, T=128)
ids, targets, fresh = segments.batch(step=0)
"""

from tinyprune.data.corpora import catalogue, data_directory
from tinyprune.data.segments import Segments, evaluation_segments
from tinyprune.data.text import Text, load_text
from tinyprune.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    check_ids,
    tokenizer_from_dict,
)

__all__ = [
    "ByteTokenizer",
    "CharacterTokenizer",
    "Segments",
    "Text",
    "Tokenizer",
    "WordTokenizer",
    "catalogue",
    "check_ids",
    "data_directory",
    "evaluation_segments",
    "load_text",
    "tokenizer_from_dict",
]
