"""The bits of a run do not depend on the number of threads."""

import pytest
from command import contents, do_stages, settings, write_text

# Large enough for products, attention and all other passes to run on several threads.
MODEL = {"L": 2, "D": 64, "H": 4, "N": 24, "T": 48, "M": 48, "dropout": 0.1, "dropout_attention": 0.1}
OPTIONS = settings(MODEL, B=8, steps=6, checkpoint_every=6)


@pytest.mark.slow
def test_same_bits_whatever_the_threads(tmp_path):
    corpus = write_text(tmp_path)
    found = {}
    for threads in (1, 2, 3):
        directory = tmp_path / f"run{threads}"
        environment = {"NUMBA_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        do_stages(directory, corpus, OPTIONS, ["--target-heads=5"], env=environment)
        found[threads] = contents(directory)
    assert found[1].keys() == found[2].keys() == found[3].keys()
    assert [name for name, content in found[1].items() if not content == found[2][name] == found[3][name]] == []
