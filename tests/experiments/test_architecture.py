"""The architecture study: both models, equal in size, and their differences."""

import dataclasses

from toy import toy_plan, whole_study

from tinyprune.experiments.results import read_csv
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies.architecture import STUDY
from tinyprune.model.counting import part_prices


def test_untied_models_stay_within_the_tied_ones_parameters(tmp_path):
    plan = toy_plan(tmp_path, methods=("gates", "michel", "least-squares", "small-from-scratch"))
    files, pictures = whole_study("architecture", plan, tmp_path)
    assert pictures == {"differences"}
    rows = {(r["method"], r["seed"]): r for r in read_csv(files["results.csv"])}
    assert len(rows) == 2 * 2 * (2 + 4)  # architectures · seeds · (baseline, unpruned, methods)
    store, whole = Store(tmp_path / "architecture"), None
    for entry in STUDY.entries(plan):
        untied = entry.method.endswith(", untied")
        parameters, config = store.records[entry.cell.key]["parameters"], entry.cell.config.model
        if entry.cell.heads is None:
            whole = parameters if whole is None else whole
            assert parameters == whole  # the same sizes
        elif untied:
            tied = rows[entry.method.removesuffix("untied") + "tied", entry.seed]["parameters"]
            largest = part_prices(dataclasses.replace(config, V=60), "parameters")[0].max()
            assert tied - largest < parameters <= tied
            assert len(store.records[entry.cell.key]["blocks"]) == 2
    comparison = read_csv(files["comparison.csv"])
    pruned = [(f"{m}, untied", 2) for m in ("gates", "michel", "least-squares", "small-from-scratch")]
    found = [(r["method"], r["heads_open"]) for r in comparison]
    assert found == [("baseline, untied", 4), ("unpruned, untied", 4), *pruned]
    assert all(r["reference"] == r["method"].replace("untied", "tied") for r in comparison)


def test_architectures_alone(tmp_path):
    """As published, with F = N; one seed has no interval, and nothing is drawn."""
    plan = toy_plan(tmp_path, methods=(), seeds=1)
    plan = dataclasses.replace(plan, config=plan.config.with_options({"model.persistent": "softmax"}))
    files, pictures = whole_study("architecture", plan, tmp_path)
    rows = [r for r in read_csv(files["results.csv"]) if r["split"] == "test"]
    assert [r["method"] for r in rows] == ["baseline, tied", "baseline, untied"] and not pictures
    assert abs(rows[0]["parameters"] - rows[1]["parameters"]) < 0.03 * rows[0]["parameters"]
