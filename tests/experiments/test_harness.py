"""The bridge to lm-evaluation-harness: a local task by hand, and the harness's own model on the same weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import succeed

from tinyprune.errors import UsageError, install_command

sys.path.append(str(Path(__file__).parents[1] / "pretrained"))
import samples

lm_eval = pytest.importorskip("lm_eval", reason=f"needs {install_command('lm-eval')}")
transformers = pytest.importorskip("transformers", reason=f"needs {install_command('peers')}")
HFLM = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm_eval[hf]").HFLM
Instance = pytest.importorskip("lm_eval.api.instance").Instance
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
TinypruneLM = pytest.importorskip("tinyprune.experiments.harness").TinypruneLM

WINDOW = 24
QUESTIONS = [
    ("the cat", [" saw", " ran", " naïve"]),
    ("for i in", [" range", " the"]),
    ("they're gone", [" dog", " 1"]),
]
TASK = """
task: by_hand
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, book):
    """A small Llama as transformers writes it, and a run that was imported from it."""
    folder = tmp_path_factory.mktemp("harness")
    samples.theirs(folder / "hub", "llama", max_position_embeddings=64)
    succeed("import", folder / "hub", folder / "run", "--corpus", book, "--set=model.T=16")
    special = {"bos_token": "<|end|>", "eos_token": "<|end|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "hub" / "tokenizer.json"), **special)
    tokenizer.save_pretrained(folder / "hub")
    lines = [json.dumps({"question": question, "choices": choices}) for question, choices in QUESTIONS]
    (folder / "by_hand.jsonl").write_text("\n".join(lines))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "by_hand.yaml").write_text(TASK.format(file=folder / "by_hand.jsonl"))
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return TinypruneLM(run=str(folder / "run"), backend="numpy", window=WINDOW, batch_size=1)


def right_by_hand(lm) -> float:
    """The share of questions whose first choice is the likeliest, by log-probabilities of whole texts."""
    right = []
    for question, choices in QUESTIONS:
        start = len(lm.text.encode(question))
        totals = []
        for choice in choices:
            ids = lm.text.encode(question + choice)
            log_p = lm.model.log_p(ids[None, :-1])[0]
            totals.append(log_p[range(start - 1, len(ids) - 1), ids[start:]].sum())
        right.append(int(np.argmax(totals)) == 0)
    return float(np.mean(right))


def test_a_local_task_by_hand(folder, ours):
    tasks = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(ours, tasks=["by_hand"], task_manager=tasks, bootstrap_iters=0)
    assert found["results"]["by_hand"]["acc,none"] == pytest.approx(right_by_hand(ours))


def requests(kind, *arguments):
    return [Instance(kind, {}, own, i) for i, own in enumerate(arguments)]


def test_the_harness_has_the_same_numbers_of_its_own_model(folder, ours):
    hub = HFLM(pretrained=str(folder / "hub"), device="cpu", dtype="float32", max_length=WINDOW, batch_size=2)
    assert (hub.prefix_token_id, hub.max_length) == (ours.prefix_token_id, ours.max_length)
    pairs = [(question, choice) for question, choices in QUESTIONS for choice in choices]
    (likeliest,) = hub.generate_until(requests("generate_until", ("the cat", {"max_gen_toks": 2})), disable_tqdm=True)
    pairs += [("the cat", likeliest), ("the cat", likeliest + " dog")]  # greedy as a whole, and in its beginning alone
    pairs += [("", "the cat saw"), ("the dogs ran, " * 9, " and ran")]  # without a context; longer than the window
    own, theirs = (lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True) for lm in (ours, hub))
    np.testing.assert_allclose([x for x, _ in own], [x for x, _ in theirs], rtol=0, atol=2e-3)
    assert [greedy for _, greedy in own] == [greedy for _, greedy in theirs]
    assert own[-4][1] and not own[-3][1]
    texts = [("the cat saw the dog",), ("the dogs ran, and ran:  then they're gone " * 4,)]
    own, theirs = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts), True) for lm in (ours, hub))
    np.testing.assert_allclose(own, theirs, rtol=0, atol=2e-3)
    settings = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    prompts = [("the cat", settings), ("for i", settings | {"until": ["a"]})]
    own, theirs = (lm.generate_until(requests("generate_until", *prompts), disable_tqdm=True) for lm in (ours, hub))
    assert own == theirs and all(own)


def test_the_harness_finds_the_model_by_its_name(folder):
    command = [sys.executable, "-m", "tinyprune.experiments.harness", "--model", "tinyprune", "--tasks", "by_hand"]
    command += ["--model_args", f"run={folder / 'run'},backend=numpy,window={WINDOW}"]
    done = subprocess.run([*command, "--include_path", folder / "tasks"], capture_output=True, text=True)
    assert done.returncode == 0 and "|by_hand|" in done.stdout, done.stderr


def test_without_a_run_it_says_in_one_line_how_to_name_one(folder):
    message = "--model_args must name a run, such as run=runs/smollm2"
    with pytest.raises(UsageError, match=message):
        TinypruneLM()
    command = [sys.executable, "-m", "tinyprune.experiments.harness", "--model", "tinyprune", "--tasks", "by_hand"]
    done = subprocess.run([*command, "--include_path", folder / "tasks"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == f"tinyprune: error: {message}"
