"""Configuration: what is refused and in which words, and that TOML brings everything back."""

import dataclasses
import math
import tomllib

import pytest

from tinyprune.config import (
    KINDS,
    Config,
    DataConfig,
    GateConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    load_preset,
    preset_names,
    read_config,
    to_toml,
)
from tinyprune.errors import UsageError

TABLES = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig, "gate": GateConfig}
# Nothing at its default; heads gone, None replaced, numbers that need an exponent.
RICH = RunConfig(
    model=ModelConfig(
        kind="transformer-xl",
        V=50,
        L=2,
        D=12,
        H=3,
        N=0,
        F=7,
        T=9,
        M=5,
        mask="causal",
        heads=(0, 2),
        head_ids=((), (0, 2)),
        cutoffs=(10, 20),
        div_value=2,
        dropout=0.1,
        dropout_attention=0.2,
        dropout_embedding=0.3,
    ),
    data=DataConfig(corpus='texts\\of "mine"\n#1 ä 🦊.txt', tokenizer="word", vocabulary=100, valid_fraction=0.1),
    train=TrainConfig(steps=7, B=3, optimizer="lamb", lr=1e-5, weight_decay=1e-20, eps=1e16, schedule="constant"),
    gate=GateConfig(target_heads=5, hard=False, objective="layerwise", log_alpha_init=-1.5),
    gate_train=TrainConfig(steps=8),
    finetune=TrainConfig(steps=9),
    seed=12,
)


def rebuilt(run: RunConfig) -> RunConfig:
    return read_config(to_toml(run.to_dict()), "test")


# There and back.


@pytest.mark.parametrize("run", [RunConfig(), RICH], ids=["defaults", "rich"])
def test_toml_brings_everything_back(run):
    assert rebuilt(run) == run
    assert RunConfig.from_dict(run.to_dict()) == run
    assert read_config("", "test") == RunConfig()


def test_heads_are_written_only_once_some_are_gone():
    assert not {"heads", "head_ids"} & ModelConfig().to_dict().keys()
    assert ModelConfig(L=2, H=2, heads=(1, 2), head_ids=((1,), (0, 1))).to_dict()["head_ids"] == ((1,), (0, 1))
    # One head of two is left, and it is not the first: the count alone would not say so.
    assert rebuilt(RunConfig(model=ModelConfig(L=1, H=2, heads=(1,), head_ids=((1,),)))).model.head_ids == ((1,),)


def test_defaults_that_follow_from_others():
    config = ModelConfig(L=3, D=12, H=4)
    assert config.heads == (4, 4, 4) and config.head_ids == ((0, 1, 2, 3),) * 3
    assert config.Dh == 3 and config.heads_total == 12 and config.relative
    assert ModelConfig(L=2, H=4, heads=(0, 2)).head_ids == ((), (0, 1))
    assert ModelConfig(M=7).span == 7 and ModelConfig(M=7, mask="causal").span is None
    assert not ModelConfig(kind="transformer", N=0, F=4, M=0, mask="causal").relative


def test_toml_is_looser_than_python_where_nothing_is_lost():
    run = RunConfig.from_dict({"train": {"lr": 1}, "model": {"L": 2, "H": 2, "heads": [2, 1]}})
    assert run.train.lr == 1.0 and isinstance(run.train.lr, float)
    assert run.model.heads == (2, 1)


def test_configurations_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().train.steps = 5


# What is refused.


def refused(tables: dict) -> str:
    with pytest.raises(UsageError) as error:
        RunConfig.from_dict(tables)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_tables_and_keys_are_named_and_so_are_those_allowed():
    assert refused({"modle": {}}).startswith("unknown table or key 'modle'; allowed are model, data, train, gate")
    assert refused({"train": {"stepz": 3}}).startswith("unknown key train.stepz; allowed are steps, B, optimizer")
    assert refused({"model": 3}) == "model must be a table, got 3"
    for table in ("gate_train", "finetune"):
        assert refused({table: {"stepz": 3}}).startswith(f"unknown key {table}.stepz")
        assert refused({table: {"B": 0}}) == f"{table}.B must be at least 1, got 0"


def bounds():
    """Every bounded number and every choice of every table, with a value just outside."""
    for table, cls in TABLES.items():
        for field in dataclasses.fields(cls):
            for limit, sign, words in (("low", -1, "at least"), ("high", 1, "at most")):
                bound = field.metadata.get(limit)
                if bound is None:
                    continue
                whole = str(field.type).startswith(("int", "tuple[int"))
                outside = bound + sign if whole else math.nextafter(bound, sign * math.inf)
                value = [outside] if str(field.type).startswith("tuple") else outside
                yield table, field.name, value, f"must be {words} {bound}"
            if field.metadata.get("choices"):
                yield table, field.name, "nonsense", "must be one of "


@pytest.mark.parametrize(("table", "key", "value", "words"), list(bounds()))
def test_values_outside_of_what_is_allowed(table, key, value, words):
    message, got = refused({table: {key: value}}), value[0] if isinstance(value, list) else value
    assert message.startswith(f"{table}.{key} {words}") and message.endswith(f"got {got!r}")


@pytest.mark.parametrize(
    ("table", "key", "value", "wanted"),
    [
        ("model", "L", 2.0, "of type int"),
        ("model", "L", "2", "of type int"),
        ("model", "L", True, "of type int"),
        ("model", "kind", 3, "of type str"),
        ("model", "heads", 3, "a list"),
        ("model", "dropout", "0.1", "of type float"),
        ("train", "lr", True, "of type float"),
        ("train", "lr", None, "of type float"),
        ("gate", "hard", 1, "of type bool"),
        ("gate", "target_heads", 2.5, "of type int"),
        ("data", "corpus", ["a"], "of type str"),
    ],
)
def test_wrong_types(table, key, value, wanted):
    assert refused({table: {key: value}}) == f"{table}.{key} must be {wanted}, got {value!r}"


def test_wrong_types_inside_of_lists():
    assert refused({"model": {"L": 2, "heads": [8, "8"]}}) == "model.heads[1] must be of type int, got '8'"
    assert refused({"model": {"L": 1, "head_ids": [[0.5]]}}) == "model.head_ids[0][0] must be of type int, got 0.5"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(value):
    assert refused({"gate": {"log_alpha_init": value}}).startswith("gate.log_alpha_init must be a finite number")


def test_the_seed():
    for value, words in ((-1, "at least 0"), (1.5, "of type int"), ("a", "of type int")):
        assert refused({"seed": value}).startswith(f"seed must be {words}")


XL = {"kind": "transformer-xl", "N": 0, "F": 8}
PLAIN = {"kind": "transformer", "N": 0, "F": 8, "M": 0, "mask": "causal"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"D": 10, "H": 4}, "model.D must be a multiple of model.H = 4, got 10"),
        ({"L": 2, "heads": [8]}, "model.heads and model.head_ids must have L = 2 entries, got 1 and 1"),
        ({"L": 1, "head_ids": [[0, 1], [0]]}, "model.heads and model.head_ids must have L = 1 entries, got 1 and 2"),
        ({"L": 1, "H": 4, "heads": [2], "head_ids": [[0]]}, "model.head_ids[0] must be 2 rising numbers below H = 4"),
        ({"L": 1, "H": 4, "heads": [2], "head_ids": [[1, 0]]}, "model.head_ids[0] must be 2 rising numbers"),
        ({"L": 1, "H": 4, "heads": [2], "head_ids": [[1, 1]]}, "model.head_ids[0] must be 2 rising numbers"),
        ({"L": 1, "H": 4, "heads": [1], "head_ids": [[4]]}, "model.head_ids[0] must be 1 rising numbers below H = 4"),
        ({"L": 1, "H": 4, "heads": [1], "head_ids": [[-1]]}, "model.head_ids[0] must be 1 rising numbers"),
        ({"L": 1, "H": 4, "heads": [5]}, "model.head_ids[0] must be 5 rising numbers below H = 4"),
        ({"F": 5}, "model.F must be 0 for all-attention"),
        (XL | {"N": 3}, "model.N must be 0 for transformer-xl"),
        (XL | {"F": 0}, "model.F must be at least 1 for transformer-xl"),
        (PLAIN | {"N": 3}, "model.N must be 0 for transformer"),
        (PLAIN | {"F": 0}, "model.F must be at least 1 for transformer"),
        (PLAIN | {"M": 3}, "model.M must be 0 for transformer"),
        (PLAIN | {"mask": "same-length"}, 'model.mask must be "causal" for transformer'),
        ({"cutoffs": [20, 10]}, "model.cutoffs must rise, got [20, 10]"),
        ({"cutoffs": [10, 10]}, "model.cutoffs must rise, got [10, 10]"),
        ({"V": 20, "cutoffs": [10, 20]}, "model.cutoffs must lie below V = 20, got [10, 20]"),
        ({"D": 8, "cutoffs": [10, 20]}, "model.div_value = 4 leaves no width for cluster 2 at D = 8"),
    ],
)
def test_fields_that_do_not_go_together(model, message):
    assert refused({"model": model}).startswith(message)


@pytest.mark.parametrize("model", [XL, PLAIN, {"V": 20, "cutoffs": [10, 19]}, {"N": 0}, {"M": 0}, {"H": 1}, {"D": 8}])
def test_fields_that_do(model):
    run = RunConfig.from_dict({"model": model})
    assert rebuilt(run) == run


def test_every_option_says_what_it_means():
    for cls in TABLES.values():
        assert issubclass(cls, Config)
        assert all(f.metadata["doc"] for f in dataclasses.fields(cls))


# Options and presets.


def test_options_replace_single_values_and_are_validated():
    run = RICH.with_options({"train.lr": 0.5, "model.T": 3, "seed": 4, "gate.target_heads": 2})
    assert run.train == dataclasses.replace(RICH.train, lr=0.5) and run.seed == 4 and run.model.T == 3
    assert run.gate.target_heads == 2 and run.finetune == RICH.finetune
    assert RICH.with_options({}) == RICH
    assert RunConfig().with_options({"model.L": 2, "model.H": 4}).model.head_ids == ((0, 1, 2, 3),) * 2
    for options, message in (
        ({"train.B": 0}, "train.B must be at least 1"),
        ({"train.nope": 0}, "unknown key train.nope"),
        ({"nope.B": 0}, "unknown table 'nope' in 'nope.B'; allowed are seed, model"),
        ({"seed.B": 0}, "unknown table 'seed' in 'seed.B'"),
        ({"nope": 0}, "unknown table or key 'nope'"),
        ({"model.kind": "transformer", "model.N": 3}, "model.N must be 0"),
    ):
        with pytest.raises(UsageError) as error:
            RunConfig().with_options(options)
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("start", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_one_switch_and_keeps_the_parameters(start, kind):
    """Persistent vectors become a feed-forward block of as many parameters, but for its biases and LayerNorm."""
    before = RunConfig().with_options({"model.N": 24}).with_options({"model.kind": start})
    after = before.with_options({"model.kind": kind})
    assert after.model.kind == kind and 24 in (after.model.N, after.model.F)
    assert RunConfig().with_options({"model.kind": kind, "model.M": 0, "model.mask": "causal"}).model.M == 0


def test_a_run_file_explains_every_setting():
    lines = to_toml(RunConfig().to_dict()).splitlines()
    settings = [line for line in lines if " = " in line]
    assert len(settings) > 60
    assert [line for line in settings if "  # " not in line] == ["seed = 0"]


def test_errors_name_the_file():
    with pytest.raises(UsageError, match=r"my\.toml: train\.B must be at least 1"):
        read_config("[train]\nB = 0\n", "my.toml")
    with pytest.raises(UsageError, match=r"my\.toml: .*line 1"):
        read_config("[train\n", "my.toml")


def test_every_preset_loads_and_comes_back():
    for name in preset_names():
        run = load_preset(name)
        assert isinstance(run, RunConfig) and rebuilt(run) == run


def test_a_toml_file_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(to_toml(RICH.to_dict()), encoding="utf-8")
    assert load_preset(str(path)) == RICH
    path.write_text("[train]\nB = 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"run\.toml: train\.B must be at least 1"):
        load_preset(str(path))


@pytest.mark.parametrize("name", ["nope", "nope.toml", "/", "test_config.py"])
def test_a_preset_that_does_not_exist(name):
    with pytest.raises(UsageError, match=f"no preset or .toml file '{name}'; presets are"):
        load_preset(name)


def test_toml_is_real_toml():
    tables = {"a": 1, "t": {"x": [1, 2], "y": 'q"\\\n', "z": True, "e": 1e-9}}
    assert tomllib.loads(to_toml(tables)) == tables
