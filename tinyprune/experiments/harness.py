"""A run as a model of EleutherAI's lm-evaluation-harness, which knows HellaSwag, ARC, PIQA, LAMBADA and hundreds more.

    python -m tinyprune.experiments.harness --model tinyprune --model_args run=runs/smollm2 --tasks lambada_openai

This is the harness's own command, to which it adds the model `tinyprune`: the harness has a fixed table of models, and
finds no others by itself. Texts of tasks come from the network. https://github.com/EleutherAI/lm-evaluation-harness
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from itertools import takewhile
from typing import Any

import numpy as np

from tinyprune.errors import TinypruneError, UsageError, missing_extra
from tinyprune.io.progress import progress_bar
from tinyprune.kernels.backend import default_backend, get_backend
from tinyprune.model.generation import generate
from tinyprune.runs.directory import RunDirectory, load_model
from tinyprune.training.evaluation import last_tokens, with_window

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    missing = missing_extra("the bridge to lm-evaluation-harness", "lm-eval", __name__)
    if __name__ == "__main__":
        sys.exit(f"tinyprune: error: {missing}")
    raise missing from error

B = 8  # texts that are read at once
WINDOW = 2048  # tokens that are read at once, where the model's parameters allow it
TOKENS = 256  # of an answer, if the task does not say how many


@register_model("tinyprune")
class TinypruneLM(TemplateLM):
    """The model of one stage of a run.

    Args:
        run: its directory.
        stage: the latest one, if it is empty.
        backend: the usual one, if it is empty.
        precision: of the factors of products, "float32" or "bf16".
        window: how many tokens are read at once; 0 for 2,048, or T where parameters are made for T.
        prefix: the number of the token before a text that has no context; by default the one between documents.
        settings: of the harness, such as batch_size and device, which change nothing here.

    Raises UsageError if there is no `run`, no such stage or backend, or no token for a text without context.
    """

    def __init__(
        self,
        run: str = "",
        stage: str = "",
        backend: str = "",
        precision: str = "float32",
        window: int = 0,
        prefix: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if not run:
            raise UsageError("--model_args must name a run, such as run=runs/smollm2")
        directory = RunDirectory(run)
        saved = load_model(
            directory.checkpoint(stage or directory.latest_stage()), get_backend(backend or default_backend())
        )
        self.model, self.text = saved.model.in_precision(precision), saved.tokenizer
        # of parameters that are made for T tokens no more are read, unless that is asked for
        with nullcontext() if window else suppress(UsageError):
            self.model = with_window(self.model, window or WINDOW)
        self.window = window or self.model.config.T
        self.prefix = getattr(self.text, "beginning", None) if prefix is None else prefix
        if self.prefix is None:
            raise UsageError("--model_args must have prefix=N, for this model has no token between documents")
        self.name = f"{run}, {saved.metadata['stage']}"

    @property
    def max_length(self) -> int:
        """How many tokens are read at once."""
        return self.window

    @property
    def eot_token_id(self) -> int:
        """The token before a text that has no context."""
        return self.prefix

    @property
    def tokenizer_name(self) -> str:
        """What the harness calls the tokenizer in its cache."""
        return self.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text, without special ones."""
        return self.text.encode(string).tolist()

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return log p of each continuation, and whether greedy generation would write it."""
        longest = self.max_length + 1
        texts = [np.array((context + new)[-longest:]) for _, context, new in requests]
        last = [min(len(new), len(text) - 1) for (*_, new), text in zip(requests, texts, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scored = last_tokens(self.model, [texts[i] for i in order], [last[i] for i in order], B)
        bar = progress_bar(scored, total=len(texts), desc="tinyprune", unit="text")
        found = {i: (float(x.sum()), bool(likeliest.all())) for i, (x, likeliest) in zip(order, bar, strict=True)}
        return [found[i] for i in range(len(texts))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p of whole texts, each token predicted once, in windows without overlap."""
        total = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix, self.max_length, context_len=1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            total.append(sum(log_p for log_p, _ in self._loglikelihood_tokens(parts)))
        return total

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, before the first of the task's words to stop at."""
        return [self.write(*request.args) for request in requests]

    def write(self, context: str, settings: dict[str, Any]) -> str:
        """Continue one context."""
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else until
        most = int(settings.get("max_gen_toks", TOKENS))
        temperature = float(settings.get("temperature", 0)) if settings.get("do_sample") else 0.0
        prompt = np.array(self.tok_encode(context)[-self.max_length :] or [self.prefix])
        new = generate(self.model, prompt, most, np.random.default_rng(0), temperature=temperature)
        tokens: list[int] = []
        for token in takewhile(lambda token: token != self.prefix, new):
            tokens.append(token)
            said = self.text.decode(tokens)
            if any(word in said for word in until):
                return min((said.split(word)[0] for word in until), key=len)
        return self.text.decode(tokens)


def main() -> int:
    """Run the harness's command; an error of ours is one line."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except TinypruneError as error:
        print(f"tinyprune: error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
