"""A run that version 0.2 has begun, and that was killed in its gate stage, goes on and ends as that version does."""

import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy
from command import refused, succeed, write_text

OLD = Path(__file__).parent / "version-0.2"


def test_a_run_of_version_0_2_goes_on(tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    write_text(tmp_path)
    said = succeed("gate", run, "--resume", "--backend=numpy").stderr
    assert "going on after step 6" in said
    assert "heal.lr since version 0.3" in refused(2, "finetune", run, "--set=finetune.lr=1.0")
    for stage in ("prune", "finetune"):
        succeed(stage, run, "--backend=numpy")
    found = {stage: safetensors.numpy.load_file(run / f"{stage}.safetensors") for stage in ("gate", "finetune")}
    for name, expected in safetensors.numpy.load_file(OLD / "expected.safetensors").items():
        stage, _, parameter = name.partition(".")
        # the same bits on the processor that made the file; elsewhere products are added in another order
        np.testing.assert_allclose(found[stage][f"params.{parameter}"], expected, rtol=0, atol=2e-4, err_msg=name)


def test_a_new_setting_in_an_old_run_is_written_in_its_new_place(tmp_path):
    run = shutil.copytree(OLD, tmp_path / "run")
    write_text(tmp_path)
    succeed("gate", run, "--overwrite", "--target-heads=2", "--backend=numpy")
    written = (run / "config.toml").read_text(encoding="utf-8")
    assert "[choose]" in written and "target_heads = 2" in written and "[finetune]" not in written
