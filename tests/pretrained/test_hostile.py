"""Hostile files: with flipped bits, other numbers, wrong lengths and deep nests. They are read or refused."""

import json
import struct

import numpy as np
import pytest
import samples
from test_gguf import LLAMA, write

from tinyprune.errors import TinypruneError
from tinyprune.ops.engine import Engine
from tinyprune.pretrained import read_pretrained, write_hub
from tinyprune.runs.directory import load_model
from tinyprune.training.checkpoints import save_checkpoint

NUMBERS = [0, 1, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1]
DEEP = 20_000
KINDS = ("gguf", "hub", "checkpoint")


def altered(content, end, rng):
    """Return the content with bits flipped, a number replaced or the rest cut off, before `end`."""
    at = int(rng.integers(end))
    match rng.integers(3):
        case 0:
            return content[:at] + bytes([content[at] ^ 1 << int(rng.integers(8))]) + content[at + 1 :]
        case 1:
            number = struct.pack("<Q", NUMBERS[rng.integers(len(NUMBERS))])[: rng.choice([4, 8])]
            return content[:at] + number + content[at + len(number) :]
    return content[:at]


def deep_header(content):
    """Return safetensors files with deep nests in the header, and in the metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    nests = [header | {"__metadata__": {"tinyprune": "[" * DEEP}}, header | {"x": "["}]
    for text in [json.dumps(nest).replace('"["', "[" * DEEP).encode() for nest in nests]:
        yield len(text).to_bytes(8, "little") + text + content[end:]


def deep_gguf(content):
    """Return GGUF files with a deep nest of arrays, and with an array that is longer than the file."""
    (count,) = struct.unpack("<Q", content[16:24])
    nest = struct.pack("<Q1sI", 1, b"x", 9) + struct.pack("<IQ", 9, 1) * DEEP
    yield content[:16] + struct.pack("<Q", count + 1) + nest + content[24:]
    length = content.index(b"token_type") + len("token_type") + 8
    yield content[:length] + struct.pack("<Q", 1 << 17) + content[length + 8 :][:4000]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small file of each kind, what reads it, and where what is worth changing ends."""
    folder, model = tmp_path_factory.mktemp("files"), samples.random_model(LLAMA)
    write(folder / "m.gguf", LLAMA, model[0].params)
    write_hub(folder / "hub", *model)
    own = {"model": LLAMA.to_dict(), "gate": None, "tokenizer": model[1].to_dict(), "data": {}, "digest": ""}
    save_checkpoint(folder / "c.safetensors", {f"params.{n}": x for n, x in model[0].params.items()}, own)
    load_model(folder / "c.safetensors", Engine())
    return {
        "gguf": (folder / "m.gguf", read_pretrained),
        "hub": (folder / "hub" / "model.safetensors", lambda path: read_pretrained(path.parent)),
        "checkpoint": (folder / "c.safetensors", lambda path: load_model(path, Engine())),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_read_or_refused_in_one_line(kind, files):
    path, read = files[kind]
    content, rng, refused = path.read_bytes(), np.random.default_rng(2110), 0
    end = content.index(b"blk.1") if kind == "gguf" else 8 + int.from_bytes(content[:8], "little")
    deep = [*(deep_gguf if kind == "gguf" else deep_header)(content)]
    for hostile in [*(altered(content, end, rng) for _ in range(30)), *deep]:
        path.write_bytes(hostile)
        try:
            read(path)
        except TinypruneError as error:
            said, refused = str(error), refused + 1
            assert "\n" not in said and len(said) < 400, said
            assert "out of bounds" not in said and "recursion" not in said
    assert refused >= 15
    path.write_bytes(content)
    read(path)
