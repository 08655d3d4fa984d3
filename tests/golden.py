"""The golden record: sha256 of what the stages, a pretrained route and the studies compute, bit for bit.

    python tests/golden.py              computes all and names what differs from golden.json
    python tests/golden.py --write      writes golden.json anew, with the machine on which that was done

A change of the code that should change no result keeps the record. Bits depend on the processor and on the versions of
NumPy and Numba: on another machine, write the record before the change, to a file of its own (--file), and compare
afterwards. The settings are files as version 0.2 wrote them.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "common"), str(HERE / "pretrained"), str(HERE.parent)]

from command import STAGES, tinyprune  # noqa: E402

RECORD, SETTINGS = HERE / "golden.json", HERE / "golden"

METHODS = "gates,gates-heads,gates-random,voita,deterministic,michel,random,fluctuation,least-squares-distilled"
METHODS += ",small-from-scratch,small-longer"
# how a run's gates are chosen, in the command's words
CHOICES = {
    "lam": [],
    "target": ["--target-heads=12"],
    "share": ["--target-parameters=0.7"],
    "michel": ["--by=michel", "--target-heads=12"],
}


def do(*arguments: str | Path) -> None:
    """Run a command that must succeed."""
    done = tinyprune(*arguments)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")


def hash_of(path: Path) -> str:
    """Return the hash of a checkpoint's tensors, by name, or of another file's bytes."""
    digest = hashlib.sha256()
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    for name, x in sorted(safetensors.numpy.load_file(path).items()):
        digest.update(f"{name} {x.dtype} {x.shape}".encode() + x.tobytes())
    return digest.hexdigest()[:16]


def stages(name: str, run: Path) -> Iterator[tuple[str, str]]:
    """Yield the hashes of a run's checkpoints and log."""
    for file in [f"{stage}.safetensors" for stage in STAGES] + ["metrics.jsonl"]:
        yield f"{name}: {file}", hash_of(run / file)


def cells(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield the hashes of a study's records, without where and when they were computed."""
    for line in (directory / "cells.jsonl").read_text().splitlines():
        entry = json.loads(line)
        cell = entry["cell"]
        seed = cell["seed"] if "seed" in cell else cell["config"]["seed"]
        names = [cell.get(name) for name in ("what", "method", "parts", "heads", "share")]
        name = " ".join(str(x) for x in [*names, f"seed {seed}"] if x is not None)
        times = ("machine", "started", "ended", "seconds", "made_in")
        record = {key: value for key, value in entry["record"].items() if key not in times}
        yield name, hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def text(lines: int) -> str:
    """Return a text that is the same everywhere, with something to learn: numbers, squares and repeated words."""
    sentence = "the head that reads its past finds what came before and says it once more"
    words = sentence.split()
    return "".join(f"{i} squared is {i * i}; {words[i % 15]} {words[i * i % 15]} {i % 7}.\n\n" for i in range(lines))


def record(folder: Path) -> Iterator[tuple[str, str]]:
    """Compute everything in a folder; yield names and hashes."""
    (folder / "book.txt").write_text(text(900), "utf-8")
    (folder / "other.txt").write_text(text(200)[::-1], "utf-8")

    for backend in ("numpy", "numba"):
        for seed in (0, 1):
            for how, options in CHOICES.items() if seed == 0 else [("lam", [])]:
                run = folder / f"{backend}-{seed}-{how}"
                start = ["--preset", SETTINGS / "tiny.toml", "--corpus", folder / "book.txt", f"--seed={seed}"]
                do("train", run, *start, f"--backend={backend}")
                do("gate", run, *options, f"--backend={backend}")
                for stage in ("prune", "finetune"):
                    do(stage, run, f"--backend={backend}")
                yield from stages(f"tiny, {backend}, seed {seed}, {how}", run)

    from samples import LLAMA, random_model

    from tinyprune.pretrained.gguf_writer import write_gguf

    write_gguf(folder / "llama.gguf", *random_model(LLAMA))
    lines = [f"The head of line {i % 23} says {i % 11}; it is right. " for i in range(900)]
    (folder / "lines.txt").write_text("".join(np.random.default_rng(0).permutation(lines)), "utf-8")
    preset, several = SETTINGS / "pretrained.toml", folder / "texts.toml"
    texts = f'[gate]\nrepair_corpus = "run,self,{folder / "other.txt"}"'
    several.write_text(preset.read_text("utf-8").replace("[gate]", texts), "utf-8")
    routes = {"gates": (preset, []), "michel": (preset, ["--by=michel"]), "three texts": (several, [])}
    for name, (settings, options) in routes.items():
        run = folder / f"pretrained-{name}"
        start = ["--preset", settings, "--corpus", folder / "lines.txt"]
        do("import", folder / "llama.gguf", run, *start)
        do("gate", run, "--target-parameters=0.8", *options)
        do("prune", run)
        do("finetune", run)
        yield from stages(f"pretrained, {name}", run)

    common = ["--preset", SETTINGS / "study.toml", "--corpus", folder / "book.txt", "--seeds=2"]
    common += [f"--directory={folder / 'tradeoff'}"]
    do("experiment", "tradeoff", *common, f"--methods={METHODS}", "--shares=0.5", "--jobs=1")
    yield from ((f"tradeoff: {name}", found) for name, found in cells(folder / "tradeoff"))
    where = folder / "compare"
    do("compare", folder / "pretrained-gates", f"--directory={where}", "--methods=gates,michel", "--tokens=100",
       "--shares=0.8", "--seeds=1", f"--other={folder / 'other.txt'}")  # fmt: skip
    yield from ((f"compare: {name}", found) for name, found in cells(where))


def machine() -> str:
    """Return what bits depend on, beside the code."""
    import numba

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if "model" in line]
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, Numba {numba.__version__}"
    return f"{' '.join(sorted(set(names)))}; {versions}"


def main() -> int:
    """Write the record, or compare with it; the status is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the record instead of comparing with it")
    parser.add_argument("--file", type=Path, default=RECORD, help="the record (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = dict(record(Path(folder)))
    if arguments.write:
        content = {"machine": machine(), "sha256": found}
        arguments.file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        return 0
    kept = json.loads(arguments.file.read_text("utf-8"))
    if kept["machine"] != machine():
        print(f"the record is of another machine: {kept['machine']}; this one is {machine()}")
    wrong = [name for name in kept["sha256"] if found.get(name) != kept["sha256"][name]]
    for name in wrong:
        print(f"{name}: {found.get(name)} instead of {kept['sha256'][name]}")
    print(f"{len(kept['sha256']) - len(wrong)} of {len(kept['sha256'])} as recorded")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
