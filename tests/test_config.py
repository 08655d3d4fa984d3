"""Configuration: what is refused and in which words, and that TOML brings everything back."""

import dataclasses
import math

import pytest

from tinyprune import config
from tinyprune.config import ModelConfig, RunConfig, TrainConfig, load_preset, read_config, to_toml
from tinyprune.errors import UsageError

TABLES = {"model": ModelConfig, "data": config.DataConfig, "train": TrainConfig, "gate": config.GateConfig}
# Nothing at its default; heads gone, None replaced, numbers that need an exponent.
SIZES = {"V": 50, "L": 2, "D": 12, "H": 3, "N": 0, "F": 7, "T": 9, "M": 5, "heads": (0, 2), "head_ids": ((), (0, 2))}
SOFTMAX = {"cutoffs": (10, 20), "div_value": 2}
DROPOUT = {"dropout": 0.1, "dropout_attention": 0.2, "dropout_embedding": 0.3}
RICH = RunConfig(
    model=ModelConfig(kind="transformer-xl", mask="causal", **SIZES, **SOFTMAX, **DROPOUT),
    data=config.DataConfig(
        corpus='texts\\of "mine"\n#1 ä 🦊.txt', tokenizer="word", vocabulary=100, valid_fraction=0.1
    ),
    train=TrainConfig(steps=7, B=3, optimizer="lamb", lr=1e-5, weight_decay=1e-20, eps=1e16, schedule="constant"),
    choose=config.ChooseConfig(target_heads=5),
    gate=config.GateConfig(hard=False, distribution="deterministic", log_alpha_init=-1.5),
    gate_train=TrainConfig(steps=8),
    heal=TrainConfig(steps=9),
    seed=12,
)
XL = {"kind": "transformer-xl", "N": 0, "F": 8}
PLAIN = {"kind": "transformer", "N": 0, "F": 8, "M": 0, "mask": "causal"}
MODELS = [XL, PLAIN, {"V": 20, "cutoffs": [10, 19]}, {"N": 0}, {"M": 0}, {"H": 1}, {"D": 8}]
# The head that stays is not the first, which the count alone would mean.
MODELS += [{"L": 1, "H": 2, "heads": [1], "head_ids": [[1]]}]
RUNS = [RICH, *(RunConfig.from_dict({"model": x}) for x in [{}, *MODELS]), *map(load_preset, config.preset_names())]


@pytest.mark.parametrize("run", RUNS)
def test_toml_brings_everything_back(run):
    assert read_config(to_toml(run.to_dict()), "test") == run
    assert RunConfig.from_dict(run.to_dict()) == run


def test_defaults_follow_from_others_and_stay():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().train.steps = 5
    model = ModelConfig(L=3, D=12, H=4)
    assert model.heads == (4, 4, 4) and model.head_ids == ((0, 1, 2, 3),) * 3
    assert model.Dh == 3 and model.heads_total == 12 and model.relative
    assert ModelConfig(L=2, H=4, heads=(0, 2)).head_ids == ((), (0, 1))
    assert ModelConfig(M=7).span == 7 and ModelConfig(M=7, mask="causal").span is None
    # Heads are written only once some are gone.
    assert not {"heads", "head_ids"} & ModelConfig().to_dict().keys()
    assert ModelConfig(L=2, H=2, heads=(1, 2), head_ids=((1,), (0, 1))).to_dict()["head_ids"] == ((1,), (0, 1))
    # TOML is looser than Python where nothing is lost.
    run = RunConfig.from_dict({"train": {"lr": 1}, "model": {"L": 2, "H": 2, "heads": [2, 1]}})
    assert isinstance(run.train.lr, float) and run.train.lr == 1 and run.model.heads == (2, 1)
    assert not ModelConfig(**PLAIN).relative and read_config("", "test") == RunConfig()


def refused(tables: dict) -> str:
    with pytest.raises(UsageError) as error:
        RunConfig.from_dict(tables)
    assert "\n" not in str(error.value)
    return str(error.value)


def bounds():
    """Every bounded number and every choice of every table, with a value just outside."""
    for table, cls in TABLES.items():
        for field in dataclasses.fields(cls):
            for limit, sign, words in (("low", -1, "at least"), ("high", 1, "at most")):
                if (bound := field.metadata[limit]) is not None:
                    whole = str(field.type).startswith(("int", "tuple[int"))
                    outside = bound + sign if whole else math.nextafter(bound, sign * math.inf)
                    value = [outside] if str(field.type).startswith("tuple") else outside
                    yield table, field.name, value, f"must be {words} {bound}"
            if field.metadata.get("choices"):
                yield table, field.name, "§", "must be one of "


@pytest.mark.parametrize(("table", "key", "value", "words"), list(bounds()))
def test_values_outside_of_what_is_allowed(table, key, value, words):
    message, got = refused({table: {key: value}}), value[0] if isinstance(value, list) else value
    assert message.startswith(f"{table}.{key} {words}") and message.endswith(f"got {got!r}")


WRONG_TYPES = {
    "of type int": [("model.L", 2.0), ("model.L", "2"), ("model.L", True), ("choose.target_heads", 2.5)],
    "of type float": [("model.dropout", "0.1"), ("train.lr", True), ("train.lr", None)],
    "of type str": [("model.kind", 3), ("data.corpus", ["a"])],
    "of type bool": [("gate.hard", 1)],
    "a list": [("model.heads", 3)],
}


@pytest.mark.parametrize(("key", "value", "wanted"), [(*x, wanted) for wanted, xs in WRONG_TYPES.items() for x in xs])
def test_wrong_types(key, value, wanted):
    table, name = key.split(".")
    assert refused({table: {name: value}}) == f"{key} must be {wanted}, got {value!r}"


IDS = {"L": 1, "H": 4}
TRAININGS = ("train", "gate_train", "heal")
NOT_FINITE = (math.nan, math.inf, -math.inf)
NOT_TOGETHER = [
    ({"D": 10, "H": 4}, "model.D must be a multiple of model.H = 4, got 10"),
    ({"L": 2, "heads": [8]}, "model.heads and model.head_ids must have L = 2 entries, got 1 and 1"),
    ({"L": 1, "head_ids": [[0, 1], [0]]}, "model.heads and model.head_ids must have L = 1 entries, got 1 and 2"),
    *(
        (IDS | {"heads": [n], "head_ids": [ids]}, f"model.head_ids[0] must be {n} rising numbers below H = 4")
        for n, ids in ((2, [0]), (2, [1, 0]), (2, [1, 1]), (1, [4]), (1, [-1]))
    ),
    (IDS | {"heads": [5]}, "model.head_ids[0] must be 5 rising numbers below H = 4"),
    ({"F": 5}, "model.F must be 0 for all-attention"),
    *((kind | {"N": 3}, f"model.N must be 0 for {kind['kind']}") for kind in (XL, PLAIN)),
    *((kind | {"F": 0}, f"model.F must be at least 1 for {kind['kind']}") for kind in (XL, PLAIN)),
    (XL | {"persistent": "stream"}, 'model.persistent must be "softmax" for transformer-xl'),
    (PLAIN | {"M": 3}, "model.M must be 0 for transformer"),
    (PLAIN | {"mask": "same-length"}, 'model.mask must be "causal" for transformer'),
    *(({"cutoffs": x}, f"model.cutoffs must rise, got {x}") for x in ([20, 10], [10, 10])),
    ({"V": 20, "cutoffs": [10, 20]}, "model.cutoffs must lie below V = 20, got [10, 20]"),
    ({"D": 8, "cutoffs": [10, 20]}, "model.div_value = 4 leaves no width for cluster 2 at D = 8"),
]
OTHERS = [
    ({"modle": {}}, "unknown table or key 'modle'; allowed are model, data, train, choose"),
    ({"model": 3}, "model must be a table, got 3"),
    *(({x: {"stepz": 3}}, f"unknown key {x}.stepz; allowed are steps, B, optimizer") for x in TRAININGS),
    *(({x: {"B": 0}}, f"{x}.B must be at least 1, got 0") for x in TRAININGS),
    ({"model": {"L": 2, "heads": [8, "8"]}}, "model.heads[1] must be of type int, got '8'"),
    ({"model": {"L": 1, "head_ids": [[0.5]]}}, "model.head_ids[0][0] must be of type int, got 0.5"),
    *(({"gate": {"log_alpha_init": x}}, f"gate.log_alpha_init must be a finite number, got {x}") for x in NOT_FINITE),
    *(
        ({"gate": {key: value}}, f'gate.{key} = "{value}" is gone; the last version that has it is 0.2')
        for key, value in (("distribution", "top-k"), ("objective", "layerwise"))
    ),
    ({"seed": -1}, "seed must be at least 0, got -1"),
    *(({"seed": x}, f"seed must be of type int, got {x!r}") for x in (1.5, "a")),
]


@pytest.mark.parametrize(("tables", "message"), [*(({"model": model}, said) for model, said in NOT_TOGETHER), *OTHERS])
def test_what_is_refused(tables, message):
    assert refused(tables).startswith(message)


def test_options_replace_single_values_and_are_validated():
    run = RICH.with_options({"train.lr": 0.5, "model.T": 3, "seed": 4, "choose.target_heads": 2})
    assert run.train == dataclasses.replace(RICH.train, lr=0.5) and run.seed == 4
    assert run.model.T == 3
    assert run.choose.target_heads == 2 and run.heal == RICH.heal
    assert RICH.with_options({}) == RICH
    assert RunConfig().with_options({"model.L": 2, "model.H": 4}).model.head_ids == ((0, 1, 2, 3),) * 2
    for options, message in (
        ({"train.B": 0}, "train.B must be at least 1"),
        ({"seed.B": 0}, "unknown table 'seed' in 'seed.B'"),
        ({"model.kind": "transformer", "model.N": 3}, "model.N must be 0"),
    ):
        with pytest.raises(UsageError, match=f"^{message}"):
            RunConfig().with_options(options)


@pytest.mark.parametrize("kind", config.KINDS)
def test_the_kind_is_one_switch_and_keeps_the_parameters(kind):
    """Persistent vectors become a feed-forward block of as many parameters, but for its biases and LayerNorm."""
    for start in config.KINDS:
        before = RunConfig().with_options({"model.N": 24}).with_options({"model.kind": start})
        after = before.with_options({"model.kind": kind})
        width = 16 if kind == "llama" else 24  # SwiGLU has a third matrix
        assert after.model.kind == kind and width in (after.model.N, after.model.F)
    assert RunConfig().with_options({"model.kind": kind, "model.M": 0, "model.mask": "causal"}).model.M == 0
    networks = RunConfig().with_options({"model.H": 4, "model.N": 6, "model.persistent": "stream"})
    block = networks.with_options({"model.kind": "transformer-xl"}).model
    assert (block.F, block.N, block.persistent) == (24, 0, "softmax")


def test_files_of_version_0_2_are_read():
    for number in (0.5, 7.0):  # which changed nothing for these gates
        for distribution in ("hard-concrete", "deterministic"):
            gone = {"objective": "task", "layerwise_weight": number, "tau": number}
            old = {"gate": gone | {"distribution": distribution, "lam": 0.3}}
            assert RunConfig.from_dict(old).gate == config.GateConfig(distribution=distribution, lam=0.3)
    gate = {"criterion": "michel", "criterion_tokens": 7, "target_share": 0.5, "price": "cache", "units": 4}
    gate |= {"heads": False, "groups": True, "repair_tokens": 9, "repair_type": "q8_0", "repair_corpus": "run,self"}
    read = RunConfig.from_dict({"gate": gate, "finetune": {"steps": 3, "distill": 0.5}})
    assert read.choose == config.ChooseConfig("michel", 7, None, 0.5, "cache", 4, False)
    assert read.gate.groups
    assert read.repair == config.RepairConfig(9, "q8_0") and read.texts == "run,self"
    assert (read.heal.steps, read.heal.distill) == (3, 0.5)
    assert RunConfig.from_dict({"gate": {"criterion": ""}}) == RunConfig.from_dict({})
    again = config.as_version_02(read)
    assert {key: again["gate"][key] for key in gate} == gate
    assert again["finetune"] == read.heal.to_dict()
    for old, now in (("gate.target_heads", "choose.target_heads"), ("finetune.lr", "heal.lr")):
        with pytest.raises(UsageError, match=f"{old} is called {now} since version 0.3"):
            RunConfig().with_options({old: 1})


def test_a_run_file_explains_every_setting():
    settings = [line for line in to_toml(RunConfig().to_dict()).splitlines() if " = " in line]
    assert len(settings) > 60 and [line for line in settings if "  # " not in line] == []
    assert all(f.metadata["doc"] for cls in TABLES.values() for f in dataclasses.fields(cls))


def test_presets_are_found_by_name_or_path(tmp_path):
    (tmp_path / "run.toml").write_text(to_toml(RICH.to_dict()), "utf-8")
    assert load_preset(str(tmp_path / "run.toml")) == RICH
    for name in ("nope", "nope.toml", "/", __file__):
        with pytest.raises(UsageError, match=f"no preset or .toml file '{name}'; presets are"):
            load_preset(name)
