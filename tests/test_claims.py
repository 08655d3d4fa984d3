"""The numbers of the claims pages follow from the committed cells."""

import itertools
import json
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

from tinyprune.experiments.compare import ratio
from tinyprune.experiments.intervals import CONFIDENCE, difference, joined, judged
from tinyprune.experiments.results import SPLITS, grouped, read_csv

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "data" / "results"
PAGE, LAW = ((RESULTS / name / "README.md").read_text("utf-8") for name in (".", "law-stdlib"))
README = (ROOT / "README.md").read_text("utf-8")
LAMS = "0.03", "0.05", "0.08", "0.13"
ROW = re.compile(
    r"^\| `([^|]+)` \| ([^|]+) \| ([^|]+) \| [+−\d.]+ \| [^|]+ \| [\d.e-]+ \| [^|]+ \| [^|]+ \| \d+ \| \w+ \|$",
    re.MULTILINE,
)


@cache
def csv_of(path: str) -> list[dict]:
    return read_csv((RESULTS / path).read_text("utf-8"))


def rows_of(study: str) -> list[dict]:
    """The rows of a study, or of several with "`, `" between them."""
    names = study.split("`, `")
    return (
        joined(*(csv_of(f"{name}/results.csv") for name in names)) if len(names) > 1 else csv_of(f"{study}/results.csv")
    )


@cache
def record_of(study: str, model: str, than: str) -> dict:
    """Compare "method (heads)" with another one."""
    chosen = {}
    for name in (model, than):
        method, heads = re.fullmatch(r"(.+) \((\d+)\)", name).groups()
        chosen[method, int(heads)] = name
    rows = [r | {"method": chosen.get((r["method"], r["heads_open"]))} for r in rows_of(study)]
    return difference([r for r in rows if r["method"]], model, than)


def multiple(x: float) -> str:
    return f"{x:.2f}" if x < 10 else f"{x:,.0f}"


def signed(x: float) -> str:
    return f"{x:+.3f}".replace("-", "−")


def line(study: str, model: str, than: str, r: dict) -> str:
    """What a row of the table has to be."""
    interval = f"{signed(r['low'])} to {signed(r['high'])} | {r['p_flip']:.2g}"
    numbers = f"{signed(r['difference'])} | {interval} | {signed(r['valid'])} | {signed(r['test'])} | {r['seeds']}"
    return f"| `{study}` | {model} | {than} | {numbers} | {r['verdict']} |"


def tables(pattern: re.Pattern) -> list[list[re.Match]]:
    """The rows of the page that match, table by table."""
    found = [list(pattern.finditer(part)) for part in PAGE.split("\n\n")]
    return [rows for rows in found if rows]


def test_every_difference_follows_from_its_cells():
    rows = list(ROW.finditer(PAGE))
    assert len(rows) > 40 and len(rows) == PAGE.count("\n| `")
    names = [row.groups() for row in rows]
    records = judged([record_of(*own) for own in names])  # Holm's correction is for the page
    assert [row.group() for row in rows] == [line(*own, r) for own, r in zip(names, records, strict=True)]


# The language reference, which a run reads, and Moby Dick, a development text, to which no weight is fitted.
TEXTS = ("run", "other")


@cache
def summary() -> dict[tuple, dict]:
    """The study (d): rows by parts, method, state of the model and text."""
    rows = csv_of("smollm2-parts/summary.csv")
    return {(r["parts"], r["method"], r["model"], r["text"]): r for r in rows}


def times(parts: str, method: str, model: str) -> list[float]:
    """Perplexities on both texts, as multiples of the whole model's."""
    return [summary()[parts, method, model, text]["times"] for text in TEXTS]


def assert_says(page: str, sentence: str, *numbers: float) -> None:
    assert sentence.format(*numbers) in " ".join(page.split())


def test_every_multiple_of_a_perplexity_follows_from_its_cells():
    """A row has two texts, each with the pruned, the repaired and the healed model."""
    row = re.compile(r"^\| (heads|blocks|both) \| ([\w-]+) \| (.*) \|$", re.MULTILINE)
    (rows,) = tables(row)
    assert len(rows) == len({key[:2] for key in summary()}) - 1  # without the whole model
    for parts, method, numbers in (row.groups() for row in rows):
        states = itertools.product(TEXTS, ("pruned", "repaired", "healed"))
        found = [summary()[parts, method, model, text] for text, model in states]
        seeds, heads, blocks, size = (found[0][key] for key in ("seeds", "heads", "blocks", "bytes"))
        expected = [f"{seeds}", f"{heads:.0f}", f"{blocks or 1440:.0f}", f"{size / 1e6:.1f}"]
        expected += ["{} ({} to {})".format(*(multiple(r[key]) for key in ("times", "low", "high"))) for r in found]
        assert numbers.split(" | ") == expected


def test_the_whole_model_is_described_by_its_cells():
    reference, other = (summary()["all", "whole", "whole", text] for text in TEXTS)
    said = "({:.1f} on the language reference, {:.1f} on *Moby Dick*, 20,480 tokens each)"
    assert_says(PAGE, said, reference["perplexity"], other["perplexity"])
    assert_says(PAGE, "whole {:.1f}", reference["bytes"] / 1e6)
    tenth = summary()["blocks", "gates", "healed", "run"]["parameters"]
    assert_says(PAGE, "({:.1f} % of all parameters)", 100 * (1 - tenth / reference["parameters"]))


def test_healed_models_are_compared_with_the_whole_one_healed_as_long():
    whole = times("all", "whole", "healed")
    blocks = times("blocks", "michel-global", "healed")
    assert_says(PAGE, "healed as long, has {:.2f} and {:.2f}", *whole)
    assert_says(PAGE, "have {:.2f} and {:.2f} times", *np.divide(blocks, whole))


def test_the_spread_of_three_seeds_follows_from_its_cells():
    healed = [r for r in csv_of("smollm2-parts/results.csv") if r["model"] == "healed"]
    spreads = []
    for way in ("gates", "random"):
        of_way = [r for r in healed if r["method"] == way]
        seeds = [[r["times"] for r in rows] for rows in grouped(of_way, "parts", "text").values()]
        spreads.append(max(100 * (max(each) / min(each) - 1) for each in seeds))
    assert_says(PAGE, "differ by at most {:.0f} % (gates) and {:.0f} % (random)", *spreads)


WORDS = "smollm2-words/words.csv"


def files() -> dict[str, list[str]]:
    """For each file its perplexity and its multiple of the whole model's, with its interval, on both texts."""
    nats, rows = {}, {}
    for r in csv_of("smollm2-words/pieces.csv"):
        if r["text"] != "run" or r["tokens"] == 256:  # the last piece is shorter
            nats.setdefault((r["text"], r["model"]), []).append(r["nats"])
    for (text, model), own in nats.items():
        r = ratio(np.subtract(own, nats[text, "whole"]))
        times = "{times:.2f} ({low:.2f} to {high:.2f})".format(**r) if model != "whole" else "1.00"
        rows.setdefault(model, []).extend([f"{math.exp(np.mean(own)):.{1 + (text == 'run')}f}", times])
    return rows


def test_the_files_have_intervals_from_their_pieces():
    page = (RESULTS / "smollm2-words" / "README.md").read_text("utf-8")
    words = {r["model"]: [f"{100 * r[key]:.0f} %" for key in ("capitals", "induction")] for r in csv_of(WORDS)}
    assert all(f"| {model} | {' | '.join([*cells, *words[model]])} |" in page for model, cells in files().items())
    copied = [words[f"tenth, bf16, repeats: {state}"][1] for state in ("repaired", "healed")]
    assert_says(page, "copies {} after the repair and {} once healed", *copied)
    better, worse = ([float(files()[f"fifth, {p}: healed"][i]) for i in (0, 2)] for p in ("bf16", "float32"))
    differ = [f"{100 * (x / y - 1):.0f}" for x, y in zip(worse, better, strict=True)]
    assert_says(page, "the two models without a fifth differ by {} and {} %", *differ)
    times = files()["tenth, bf16: healed"][3].replace(" (", " times the whole model's (")
    said = "its perplexity on *Moby Dick* is {}, over pieces of it), and it copies {} of repeated tokens, not {}."
    copied, whole = (words[x][1] for x in ("tenth, bf16: healed", "whole"))
    assert_says(README, said, times.removesuffix(")"), copied, whole.removesuffix(" %"))


def test_the_speed_in_llama_cpp_follows_from_its_cells():
    """Means over the methods that take a tenth, and the whole file, measured a second time."""
    speed = csv_of("smollm2-parts/speed.csv")
    tenth = [[r for r in speed if (r["parts"], r["share"]) == (x, 0.9)] for x in ("heads", "blocks", "both")]
    again = [r for r in speed if r["method"] == "whole, once more"]
    means = []
    for rows in (*tenth, again):
        means += [np.mean([r[key] for r in rows]) for key in ("reading_times", "writing_times")]
    said = "read {:.2f} and write {:.2f} times as fast, without blocks {:.2f} and {:.2f}, "
    said += "without both {:.2f} and {:.2f}; the whole file, loaded again, {:.2f} and {:.2f}."
    assert_says(PAGE, said, *means)


def test_every_difference_at_a_fixed_lam_follows_from_its_cells():
    """Bits more than all three with as many heads, between whose models it is interpolated; both splits."""
    places = [("pydoc", lam, 5) for lam in LAMS] + [("stdlib", "0.05", 4)]
    (rows,) = tables(re.compile(r"^\| (without [\w -]+) \|((?: (?:[+−\d.]+ ± [\d.]+|–) \|){5})$", re.MULTILINE))
    assert len(rows) == 3
    for row in rows:
        for said, (text, lam, points) in zip(row.group(2).split(" |"), places, strict=False):
            made = {(r["method"], r["seed"], r["split"]): r for r in csv_of(f"stabilisers-{text}/results.csv")}
            more = []
            for seed, split in itertools.product(range(10, 15), SPLITS):
                all_three = (made[f"all three, lam {x}", seed, split] for x in (*LAMS, "0.2")[:points])
                known = sorted((r["heads_open"], r["bits_per_character"]) for r in all_three)
                r = made[f"{row.group(1)}, lam {lam}", seed, split]
                if known[0][0] <= r["heads_open"] <= known[-1][0]:
                    more.append(r["bits_per_character"] - np.interp(r["heads_open"], *zip(*known, strict=True)))
            mean = np.reshape(more, (-1, 2)).mean(1)
            half = student.ppf(CONFIDENCE, 4) * mean.std(ddof=1) / math.sqrt(5)
            assert said.strip() == (f"{signed(mean.mean())} ± {half:.3f}" if len(mean) == 5 else "–")
    # On stdlib a cubic is fitted too.
    more, names = [], [f"all three, lam {x}" for x in LAMS] + ["without output scaling, lam 0.05"]
    for seed in range(10, 15):
        bits = [np.mean([made[name, seed, split]["bits_per_character"] for split in SPLITS]) for name in names]
        heads = [made[name, seed, "test"]["heads_open"] for name in names]
        more.append(bits[-1] - np.polyval(np.polyfit(heads[:-1], bits[:-1], 3), heads[-1]))
    half = student.ppf(CONFIDENCE, 4) * np.std(more, ddof=1) / math.sqrt(5)
    assert f"with a cubic it is {signed(np.mean(more))} ± {half:.3f}" in " ".join(PAGE.split())


# Pairs with several seeds, whose variance the law's interval has.
SEVERAL = ": 3500", ": 14000", ", twice as wide: 3500"


def test_the_law_of_the_distance_follows_from_its_cells():
    bits: dict[tuple, dict[str, list]] = {}
    for text in (RESULTS / "law-stdlib/cells.jsonl").read_text("utf-8").splitlines():
        config = json.loads(text)["cell"]["config"]
        record = json.loads(text)["record"]["bits_per_character"]
        model, read = config["model"], np.array([record["valid"], record["test"]])
        size = config["train"]["steps"] / 3500, model["L"] / 4, model["D"] / model["H"] / 16, model["D"] / 128
        bits.setdefault(size, {}).setdefault(model["kind"], []).append(read)
    best = {size: [min(of[k], key=np.mean) for k in ("all-attention", "transformer-xl")] for size, of in bits.items()}
    for ours, theirs in best.values():
        numbers = [f"{ours.mean():.3f}", f"{theirs.mean():.3f}", *map(signed, [(ours - theirs).mean(), *ours - theirs])]
        assert f"| {' | '.join(numbers)} |" in LAW
    terms = np.array([[1, math.log(steps, 4), *map(math.log2, others)] for steps, *others in best])
    every = itertools.chain(*(of for kinds in bits.values() for of in kinds.values()))
    assert {f"{read.mean():.3f}" for read in every} == set(re.findall(r"(?<![+−\d.])[12]\.\d{3}", LAW))
    slopes = np.linalg.solve(terms[:5], [(a - b).mean() for a, b in list(best.values())[:5]])
    assert f"= {' '.join(signed(x) for x in slopes)}" in LAW
    larger = np.array([1, math.log(8000 / 3500, 4), 1, 2, 1])
    predicted, weights = slopes @ larger, larger @ np.linalg.inv(terms[:5])
    pairs = [[f"{kind}{n} steps (32)" for kind in ("all-attention", "transformer-xl")] for n in SEVERAL]
    seeds, halves = np.array(
        [(r["seeds"], r["high"] - r["low"]) for r in (record_of("parity-stdlib", *p) for p in pairs)]
    ).T
    squares = (halves / 2 / student.ppf(CONFIDENCE, seeds - 1)) ** 2 * seeds * (seeds - 1)
    spread, t, norm = math.sqrt(squares.sum() / 8), student.ppf(CONFIDENCE, 8), math.sqrt(1 + weights @ weights)
    assert f"deviation of {spread:.3f}, with 8 degrees of freedom" in " ".join(LAW.split())
    assert f"differ by up to {t * spread * math.sqrt(2):.3f} in 95 %" in " ".join(LAW.split())
    interval = f"{signed(predicted - t * spread * norm)} to {signed(predicted + t * spread * norm)}"
    assert f"of 95 % from {interval}. " in LAW
    assert f"for a larger one, {interval}, " in " ".join(PAGE.split())
    *five, came = [(ours - theirs).mean() for ours, theirs in best.values()]
    assert f"**{signed(predicted)}** bits more" in LAW and f"**{signed(came)}**, above" in LAW
    for said, guess in (("The law is wrong", predicted), ("wrong", five[0]), ("pairs", np.mean(five))):
        assert f"{said} by {came - guess:.3f}" in LAW
    steps, *losses = np.array([list(row.values()) for row in csv_of("law-stdlib/curves.csv")]).T
    means = [
        f"{(losses[0] - losses[1])[steps.searchsorted(k, 'right') :][:20].mean():.3f}" for k in range(2000, 8000, 1000)
    ]
    assert f"it is {means[0]} from step 2,000" in LAW
    assert f"{', '.join(means[1:5])} and {means[5]}" in LAW


def decimals(text: str) -> set[str]:
    """Numbers with a decimal point, without their sign; settings and file names are no results."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|```.*?```", "", text, flags=re.DOTALL)
    return set(re.findall(r"(?<![\w.])\d[\d,]*\.\d+", text))


# Of the paper, of tests, of sizes; and differences of two numbers in a table.
# These numbers belong to (d), see above.
WHOLE = {"7.9", "13.8", "65.9", "98.4", "0.85", "0.99", "1.14", "1.39", "1.11", "1.07"}
STATES = (None, "whole"), (0.9, "repaired"), (0.8, "repaired")
OTHERS = {"0.05", "0.01", "30.7", "47.9", "0.6", "0.9", "0.81", "0.67", "0.02", "8.3"}
OTHERS |= {"0.113", "0.222", "0.074", "0.019", "0.31", "0.03", "0.5"}


def test_every_number_in_the_text_stands_in_a_table_or_follows_from_one():
    in_tables = {x for part in f"{PAGE}\n\n{LAW}".split("\n\n") if part.startswith("| ") for x in decimals(part)}
    text = "\n\n".join(part for part in PAGE.split("\n\n") if not part.startswith("| "))
    whole = "transformer-xl: 1500 steps (32)"
    kinds = ("all-attention, gain 1: 1500 steps (32)", "all-attention: 1500 steps (32)")
    first, wider = (round(record_of("parity-stdlib", kind, whole)["difference"], 3) for kind in kinds)
    assert f"range brings {first - wider:.3f} of {first:.3f} bits" in " ".join(text.split())
    lost = {(r["share"], r["model"]): r for r in csv_of("smollm2-words/results.csv")}
    knows = [[f"{100 * lost[of][name]:.0f} %" for name in ("capitals", "induction")] for of in STATES]
    times = [f"{lost[of]['times']:.2f}" for of in STATES[1:]]
    assert re.search(".*".join([*itertools.chain(*knows), *times]), " ".join(text.split()))
    known = [binomtest(round(60 * lost[of]["capitals"]), 60).proportion_ci(method="wilson") for of in STATES]
    intervals = [f"{100 * ci.low:.0f} to {100 * ci.high:.0f}" for ci in known]
    assert_says(PAGE, "95 % intervals {}, {} and {} %", *intervals)
    smallest = record_of("choice-stdlib", "gates (16)", "michel (16)")["smallest"]
    assert f"gates and Michel's heads of {smallest:.3f} is found with 80 % power" in " ".join(text.split())
    least = [f"{2 / 2**n:.2f}" for n in (3, 5)]
    assert_says(PAGE, "never below {} with three seeds and {} with five", *least)
    quoted = {x for _, quote, *_ in QUOTES for x in decimals(quote)}
    assert decimals(text) - in_tables - OTHERS - quoted <= {
        f"{first - wider:.3f}",
        f"{smallest:.3f}",
        *least,
        *times,
        *WHOLE,
    }


def test_healing_closes_half_of_what_a_random_choice_costs():
    lines = map(json.loads, (RESULTS / "shares-stdlib/cells.jsonl").read_text("utf-8").splitlines())
    after = {
        (c["method"], c.get("heads"), c["config"]["seed"]): r for c, r in ((x["cell"], x["record"]) for x in lines)
    }

    def more(heads, stage):
        bits = [
            [after[m, heads, i]["bits_per_character_after"][stage] for i in range(10, 15)] for m in ("random", "michel")
        ]
        return f"{np.mean(np.subtract(*bits)):.3f}"

    first, last = ([more(heads, stage) for heads in (22, 16, 10)] for stage in ("gate", "finetune"))
    said = "it is {} with 22, 16 and 10 heads after 300 steps, {} after 1,000."
    assert said.format(*(f"{a}, {b} and {c}" for a, b, c in (first, last))) in " ".join(PAGE.split())


def part_of_readme(heading: str) -> str:
    return re.search(rf"\n## {heading}\n(.*?)(?=\n## |\Z)", README, re.DOTALL).group(1)


def test_the_numbers_of_the_readme_are_those_of_the_pages():
    tables = part_of_readme("Does it work\\?"), part_of_readme("Speed"), part_of_readme("Begin")
    assert decimals(README) - decimals(" ".join(tables)) <= decimals(" ".join(files()["tenth, bf16: healed"])) | {"2.0"}
    report = (RESULTS / "tiny-pydoc" / "report.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| (train|finetune): [^|]* \| (.*) \|$", report, re.MULTILINE))
    whole, small = (rows[stage].split(" | ") for stage in ("train", "finetune"))
    said = " ".join(part_of_readme("Begin").split())
    heads, parameters = small[0], int(small[2].replace(",", "")) / 1000
    assert f"Of {small[1]} heads {heads} stay, of 625 thousand parameters {parameters:.0f} thousand. " in said
    lines = (RESULTS / "tiny-pydoc/cells.jsonl").read_text("utf-8").splitlines()
    of = {c["cell"]["method"]: c["record"] for c in map(json.loads, lines)}
    bits = [of[x]["bits_per_character"] for x in ("unpruned", "small-from-scratch", "baseline")]
    own, steps, _ = test = [r["test"] for r in bits]
    assert test == sorted(test) and bits == sorted(bits, key=lambda r: r["valid"])  # the order holds on both splits
    assert {sum(of[x]["heads"]) for x in of if x.startswith("small")} == {int(heads)}
    bits = (float(small[4]), float(whole[4]), own, steps)
    said_so = "needs {:.2f} bits per character; the whole one {:.2f}, and {:.2f} when it is trained for as many steps; "
    assert (said_so + "a model that never had more heads needs {:.2f}.").format(*bits) in said


PAIR, LONGER = ("gates (16)", "michel (16)"), ("small-longer (16)", "gates (16)")
STAGE, TWO = ("gates-heads (16)", "gates (16)"), "choice-stdlib`, `shares-stdlib"
BEST, LEADS = "least-squares-distilled", (("037", 22), ("060", 16), ("099", 10), ("171", 3))
RECIPE, BEHIND = "-repaired-distilled", (("by 0.005", 22), ("0.013, 0", 16), ("0.029 and", 10), ("0.026 only", 3))
# Part of a sentence that quotes a difference, its interval, or both.
QUOTES = [
    (PAGE, "gates need 0.011 bits more", TWO, *PAIR),
    (PAGE, "need 0.005 less, and", "choice-stdlib", *STAGE),
    (PAGE, "by 0.191 bits, and better than", "choice-stdlib", *LONGER),
    *((PAGE, f"0.{said} with {n}", "shares-stdlib", f"{BEST} ({n})", f"random ({n})") for said, n in LEADS),
    *((PAGE, said, "shares-stdlib", f"random{RECIPE} ({n})", f"michel{RECIPE} ({n})") for said, n in BEHIND),
    (PAGE, "lead over them, 0.073, is open (−0.164 to +0.018)", "shares-stdlib", "gates (3)", "michel (3)"),
]


@pytest.mark.parametrize(("text", "quote", "study", "model", "than"), QUOTES)
def test_sentences_quote_their_comparison(text, quote, study, model, than):
    assert quote in " ".join(text.split())
    r = record_of(study, model, than)
    first, *ends = (f"{abs(r[name]):.3f}" for name in ("difference", "low", "high"))
    assert re.findall(r"\d\.\d{3}", quote) in ([first], ends, [first, *ends], [first, *ends[::-1]])


# The rows of README's table: what is compared.
SHOWN = [
    ("parity-stdlib", "all-attention: 3500 steps (32)", "transformer-xl: 3500 steps (32)"),
    (TWO, *PAIR),
    (TWO, f"{BEST} (16)", "michel (16)"),
    ("shares-stdlib", f"{BEST} (16)", f"michel{RECIPE} (16)"),
    ("shares-stdlib", f"random{RECIPE} (16)", f"michel{RECIPE} (16)"),
    ("choice-stdlib", *LONGER),
]


def test_the_table_of_the_readme_follows_from_the_cells():
    rows = re.findall(r"^\|[^|]*\|[^|]*\| (.*) \|$", part_of_readme("Does it work\\?"), re.MULTILINE)[2:]
    records = [record_of(*pair) for pair in SHOWN]
    made = [[*(signed(r[name]) for name in ("difference", "low", "high")), r["seeds"]] for r in records]
    assert rows == ["{} | {} to {} | {}".format(*each) for each in made]


def test_which_heads_stay_follows_from_the_cells():
    lines = map(json.loads, (RESULTS / "choice-stdlib/cells.jsonl").read_text("utf-8").splitlines())
    kept = {(x["cell"]["method"], x["cell"]["config"]["seed"]): x["record"].get("head_ids") for x in lines}
    later, common = [], []
    for seed in range(10, 22):
        gates, michel = (
            np.array([np.isin(range(8), own) for own in kept[method, seed]]) for method in ("gates", "michel")
        )
        stay, gone = np.nonzero(gates)[0][:, None], np.nonzero(~gates)[0]
        later.append((stay > gone).mean() + (stay == gone).mean() / 2)
        common.append(int((~gates & ~michel).sum()))
    half = student.ppf(CONFIDENCE, 11) * np.std(later, ddof=1) / math.sqrt(12)
    assert_says(PAGE, "In {:.2f} ± {:.2f} of all pairs of a kept head and a removed one", np.mean(later), half)
    assert_says(PAGE, "have {} to {} in common", min(common), max(common))
