"""Text: corpora, tokenizers, splits, and the contiguous segments that a memory needs.

text = load_text(DataConfig(corpus="pydoc"))
segments = Segments(text.train, B=16, T=128)
ids, targets, fresh = segments.batch(step=0)
"""

from tinyprune.data.segments import Segments as Segments
from tinyprune.data.segments import evaluation_segments as evaluation_segments
from tinyprune.data.text import Text as Text
from tinyprune.data.text import load_text as load_text
from tinyprune.data.tokenizers import BytePairTokenizer as BytePairTokenizer
from tinyprune.data.tokenizers import ByteTokenizer as ByteTokenizer
from tinyprune.data.tokenizers import CharacterTokenizer as CharacterTokenizer
from tinyprune.data.tokenizers import Tokenizer as Tokenizer
from tinyprune.data.tokenizers import WordTokenizer as WordTokenizer
from tinyprune.data.tokenizers import tokenizer_from_dict as tokenizer_from_dict
