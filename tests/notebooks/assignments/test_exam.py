"""Each exam question is solved again from the numbers in its text, by formulas of this file."""

import importlib
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from marks import FOLDER

sys.path.insert(0, str(FOLDER))
exam = importlib.import_module("exam")


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def above(log_alpha):
    return sigmoid(log_alpha - 0.333 * math.log(0.1 / 1.1))


def square(numbers):
    return np.reshape(numbers, (2, 2))


def linear(n):
    x, W, dout = square(n[:4]), square(n[4:8]), square(n[8:])
    return dout @ W.T, x.T @ dout, dout.sum(0)


def cross_entropy(n):
    p = np.array(n[:3]) / sum(n[:3])
    target = np.arange(1, 4) == n[3]
    return -math.log(p[target][0]), p - target


def layernorm(n):
    x, place, size = np.array(n[3:7]), int(n[7]) - 1, n[8]
    normal = (x - x.mean()) / x.std()
    return normal, ((np.arange(4) == place) * size - size / 4 - normal * normal[place] * size / 4) / x.std(), 0


def probabilities(n):
    open_, one = above(n[0]), sigmoid(n[0] - 0.333 * math.log(1.1 / 0.1))
    return 1 - open_, one, open_ - one


def gate(n):
    log_alpha, u = n[0], n[4]
    s = sigmoid((math.log(u / (1 - u)) + log_alpha) / 0.333)
    stretched = 1.2 * s - 0.1
    inside = 0 < stretched < 1
    return min(1, max(0, stretched)), float(stretched >= 0.5), inside * 1.2 * s * (1 - s) / 0.333


def attention(n):
    weights, v = np.array(n[2:5]), np.array(n[5:8])
    return (np.cumsum(weights * v) / np.cumsum(weights),)


def softmax_backward(n):
    a, v, dout = np.array(n[:6:2]) / n[1], np.array(n[6:9]), n[10]
    return a * dout, a * (v - a @ v) * dout, 0


def owned(n):
    L, H, Dh, D, N, total = n
    own = 5 * D * Dh + 2 * Dh + 2 * N * D + N
    return own, own * H * L / 2 / total


def sight(n):
    T, M, span = int(n[0]), int(n[1]), int(n[3])
    far = [M + i + 1 for i in range(T)]
    return sum(far), sum(min(x, span + 1) for x in far)


def l0(n):
    p = np.array([above(x) for x in n[:3]])
    return p.sum(), n[6] * p * (1 - p)


def difference(n):
    o, Wo, g, dy = np.array(n[:2]), np.reshape(n[2:8], (2, 3)), n[8], np.array(n[10:13])
    return -g * (o @ Wo), dy @ (o @ Wo)


def stabilisers(n):
    lam, steps, at, p, opened, H = n[0], n[1], n[2], n[5], n[9], n[10]
    return lam * at / steps, math.log(p / (1 - p)) + 0.333 * math.log(0.1 / 1.1), H / opened


def adam(n):
    lr, beta1, beta2, _, first, second = n[:6]
    m = (beta1 * first + second) / (1 + beta1)
    v = (beta2 * first**2 + second**2) / (1 + beta2)
    return ((-lr * math.copysign(1, first), -lr * m / math.sqrt(v)),)


def removal(n):
    H, Dh, D, N, *left = map(int, n[:6])
    shapes = [f"Wq ({D}, {k * Dh}), Wo ({k * Dh}, {D}), net.pk ({k}, {N}, {D})" for k in left]
    return *shapes, (2 * H - sum(left)) * (5 * D * Dh + 2 * Dh + 2 * N * D + N)


def folding(n):
    o, gates, Wo = np.array(n[1:5]), np.array(n[5:9]), np.array(n[9:13])
    folded = Wo * gates * 4 / np.count_nonzero(gates)
    return folded, o @ folded


def pairs(n):
    d = np.array(n[:5]) - np.array(n[5:10])
    half = n[11] * math.sqrt(((d - d.mean()) ** 2).sum() / 4 / 5)
    low, high = d.mean() - half, d.mean() + half
    said = "neither" if low <= 0 <= high else f"random heads are {'worse' if high < 0 else 'better'}"
    return d.mean(), (low, high), said


def perplexity(n):
    return math.exp(n[2]), n[2] / math.log(2) * n[1] / n[0], "bits per character"


def several_tests(n):
    p, so_far, corrected = n[:4], 0, {}
    for k, x in enumerate(sorted(p)):
        so_far = max(so_far, (4 - k) * x)
        corrected[x] = so_far
    below = [str(i + 1) for i, x in enumerate(p) if corrected[x] < 0.05]
    return [corrected[x] for x in p], ", ".join(below) or "none"


def roofline(n):
    flops, bandwidth, M, D = n[:4]
    seconds = 2 * M * D**2 / flops / 1e9, 4 * (2 * M * D + D**2) / bandwidth / 1e9
    return seconds[0] * 1e6, seconds[1] * 1e6, "arithmetic" if seconds[0] > seconds[1] else "memory"


def online_softmax(n):
    powers, v = np.array(n[:6:2]), np.array(n[6:9])
    highest = [max(powers[: i + 1]) for i in range(3)]
    sums = [sum(2.0 ** (powers[: i + 1] - highest[i])) for i in range(3)]
    return highest, sums, [2.0 ** (highest[i] - highest[i + 1]) for i in range(2)], 2.0**powers @ v / sum(2.0**powers)


SOLVE = [
    *(linear, cross_entropy, layernorm, probabilities, gate, attention, softmax_backward, owned, sight),
    *(l0, difference, stabilisers, adam, removal, folding, pairs, perplexity, several_tests),
    *(roofline, online_softmax),
]


@pytest.mark.parametrize("number", range(1, 21))
def test_answers_follow_from_the_text(number):
    texts = set()
    for seed in range(30):
        question = exam.sheet(seed)[number - 1]
        numbers = re.findall(
            r"(?<![\w.])−?\d[\d,]*(?:\.\d+)?(?!\w)", re.sub(r"(ln|[a-z]) (?=\d)", r"\1 ", question.text)
        )
        solved = SOLVE[number - 1]([float(x.replace(",", "").replace("−", "-")) for x in numbers])
        texts.add(question.text)
        for (name, answer), mine in zip(question.answers.items(), solved, strict=True):
            if isinstance(mine, str):
                assert answer == mine, (question.text, name)
            else:
                value = float(answer.partition(":")[0]) if isinstance(answer, str) else answer
                np.testing.assert_allclose(value, mine, 2e-3, 1e-5, err_msg=f"{question.text}\n{name}")
    assert len(texts) > 20


def test_sheet_shows_the_chosen_questions_and_no_answers():
    command = [sys.executable, str(FOLDER / "exam.py"), "--seed", "3", "--only"]
    said = subprocess.run([*command, "2,20"], capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.findall(r"^\*\*(\d+)\.\*\*", said, re.MULTILINE) == ["2", "20"] and "\n- " not in said
    refused = subprocess.run([*command, "21"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2 and "numbers from 1 to 20, got 21" in refused.stderr
