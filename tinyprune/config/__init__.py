"""Configuration: the settings of a run as validated dataclasses, read from and written to TOML.

A run's file has one table for each dataclass:

    [model]       ModelConfig     sizes and kind of the Transformer
    [data]        DataConfig      the text and how it is split
    [train]       TrainConfig     stage 1: the baseline
    [choose]      ChooseConfig    stage 2: which parts stay
    [gate]        GateConfig      stage 2: the gates and their loss, if gates choose
    [gate_train]  TrainConfig     stage 2: the training of gates, and of weights with them
    [repair]      RepairConfig    stage 3: what is fitted when the other parts are removed
    [heal]        TrainConfig     stage 4: the training of what stays

and two lines before them: `seed`, and `texts`, which stages 2 to 4 read.

Sizes are named by the letters of the papers: V vocabulary, L layers, D model width, H heads,
Dh = D/H head width, N persistent vectors a head, F feed-forward width, T queries in a segment,
M memory length, B batch.
"""

from tinyprune.config.model import KINDS, USUAL, ModelConfig, of_kind
from tinyprune.config.run import (
    STAGE_TABLES,
    RunConfig,
    load_preset,
    names_by_key,
    preset_names,
    preset_text,
    read_config,
    to_toml,
)
from tinyprune.config.tables import (
    BLOCK_TYPES,
    OF_HEADS,
    OF_LAYERS,
    WITHIN_LAYERS,
    ChooseConfig,
    DataConfig,
    GateConfig,
    RepairConfig,
    TrainConfig,
)
from tinyprune.config.version_02 import as_version_02, from_version_02
