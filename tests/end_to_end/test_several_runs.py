"""What several runs do together: cross-validation, ensembles, one that starts from another."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from etils import epath
from raw_data import link

from spectral_jax.commands.evaluate import evaluate_split
from spectral_jax.configs import hippocampus_3d
from spectral_jax.data.sources import Split
from spectral_jax.inference.trained import restore, restore_all
from spectral_jax.training import run
from spectral_jax.training.config import ConfigError, default_config, parse_config
from spectral_jax.training.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 100
LAST = "--checkpoint=last"


def command(name, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())  # in one line


@pytest.mark.slow
def test_crossvalidation_scores_each_case_once_and_parts_no_patient(shared_data, tmp_path):
    """Both frames of six patients, some slices of each."""
    root = tmp_path / "raw"
    for kind in ("images", "masks"):
        link(
            shared_data / "ACDC_png/train" / kind,
            root / kind,
            r"patient(003|004|005|006|009|010)_frame0[12]_slice_0?[345]\.png",
        )
    (root / "classes.txt").write_text("background\nright ventricle\nmyocardium\nleft ventricle")
    arguments = [
        "--config=tiny",
        "--config.data.name=folder",
        f"--config.data.root={root}",
        f"--config.data.data_dir={tmp_path / 'prepared'}",
        r"--config.data.options.case_pattern=(?P<case>.+)_slice_(?P<slice>\d+)",
        r"--config.data.options.group_pattern=patient\d+",
        "--config.data.image_size=32",
        "--config.data.folds=3",
        "--config.train.epochs=1.0",
        "--config.train.postprocess=largest_component",
        f"--workdir={tmp_path / 'cv'}",
    ]
    output = command("crossvalidate", *arguments)
    result = json.loads((tmp_path / "cv/evaluation/folder-folds.json").read_text())
    rows = [(row["case"], row["class"]) for row in result["cases"]]
    assert len(set(rows)) == len(rows) == 12 * 3
    trained_on, held_out = [], []
    for fold in range(3):
        config = run.read_config(epath.Path(tmp_path) / f"cv/fold{fold}")
        assert (config.data.fold, config.data.folds) == (fold, 3)
        folder = run.prepare_data(config.data)
        of_split = {
            name: {Split(folder, name).groups[case] for case in Split(folder, name).cases}
            for name in ("train", "validation", "fold")
        }
        assert sum(map(len, of_split.values())) == len(set.union(*of_split.values())) == 6
        scored = {row["group"] for row in result["cases"] if row["fold"] == fold}
        assert scored == of_split["fold"]
        held_out += scored
        decision = json.loads((tmp_path / f"cv/fold{fold}/postprocess.json").read_text())
        assert decision["validation_dice"].keys() == set(result["classes"][1:])
        trained_on.append(of_split["train"])
    assert len(held_out) == len(set(held_out)) == 6
    assert "folder: folds split of 12 cases, checkpoint of steps" in output
    assert "left ventricle" in (tmp_path / "cv/report.html").read_text()
    assert command("crossvalidate", *arguments).count("is finished, nothing to do") == 3


@pytest.fixture(scope="module")
def three_runs(shared_data, tmp_path_factory):
    """Networks of three seeds for slices of the hippocampus."""
    root = epath.Path(tmp_path_factory.mktemp("hippocampus"))
    files = r"dataset\.json|.*_0[01]\d\.nii\.gz"
    raw = link(shared_data / "Task04_Hippocampus", pathlib.Path(root) / "raw", files)
    values = hippocampus_3d.get_config()
    values.data.root, values.data.data_dir = str(raw), str(root / "prepared")
    values.data.patch_size, values.data.image_size = (), 32
    values.model.unet.update({"widths": (8, 16, 32), "norm": "batch"})
    values.objective.spectral = "none"
    values.optim.learning_rate = 3e-3
    values.train.update({"batch_size": 8, "epochs": 0.0, "steps": STEPS})
    workdirs = [root / f"seed{seed}" for seed in range(3)]
    for seed, workdir in enumerate(workdirs):
        values.train.seed = seed
        train(parse_config(values), workdir)
    return workdirs, run.prepare_data(parse_config(values).data), raw


@pytest.mark.slow
def test_an_ensemble_is_at_least_as_good_as_its_members_on_average(three_runs, tmp_path):
    workdirs, folder, _ = three_runs
    output = epath.Path(tmp_path) / "together"
    alone = [evaluate_split(of, folder, "test", "last", "decathlon") for of in workdirs]
    together = evaluate_split(output, folder, "test", "last", "decathlon", members=workdirs)
    dice = [of["summary"]["dice"]["mean"] for of in (*alone, together)]
    print("members and ensemble:", dice)
    assert dice[-1] >= np.mean(dice[:3])
    assert min(dice) > 0.3
    written = json.loads((output / "evaluation/decathlon-test.json").read_text())
    assert written["members"] == [str(of) for of in workdirs]
    assert written["checkpoint"]["step"] == [STEPS] * 3
    with pytest.raises(ConfigError, match="holds no run"):
        restore_all([*workdirs, output])


@pytest.mark.slow
def test_several_runs_are_given_to_the_commands(three_runs, tmp_path):
    workdirs, _, raw = three_runs
    joined = f"--workdir={workdirs[0]},{workdirs[1]}"
    scan = sorted((raw / "imagesTr").iterdir())[0]
    flags = [f"--input={scan}", f"--output={tmp_path / 'out'}", "--probabilities"]
    command("predict", joined, f"--workdir={workdirs[2]}", *flags)
    (row,) = csv.DictReader((tmp_path / "out/summary.csv").open())
    labels = np.asarray(nibabel.load(row["output"]).dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2}
    probabilities = nibabel.load(next((tmp_path / "out").glob("*prob*.nii.gz"))).get_fdata()
    np.testing.assert_array_equal(probabilities.argmax(-1), labels)

    output = command(
        "evaluate", joined, f"--output={tmp_path / 'pair'}", "--split=validation", LAST
    )
    assert f"checkpoint of steps {STEPS}, {STEPS}" in output
    assert "decathlon" in (tmp_path / "pair/report.html").read_text()
    command("export", joined, f"--output={tmp_path / 'pair'}", "--platforms=cpu", LAST)
    facts = json.loads((tmp_path / "pair/model.json").read_text())
    assert len(facts["members"]) == 2
    assert [of["split"] for of in facts["scores"]] == ["validation"]
    assert "mean of 2 networks" in (tmp_path / "pair/README.md").read_text()


@pytest.mark.slow
def test_a_network_for_one_hospital_is_a_start_for_another(shared_data, tmp_path):
    """Chest X-rays of Shenzhen, then few steps on those of Montgomery County."""
    values = default_config()
    values.data.name = "montgomery_shenzhen"
    values.data.root = str(shared_data / "CXR-lungs")
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.image_size = 48
    values.model.unet.widths = (8, 16)
    values.augment.quarter_turns = False
    values.objective.spectral = "none"
    values.optim.name, values.optim.learning_rate = "adamw", 1e-2
    values.train.batch_size = 8

    def trained(name, site, steps, **model):
        values.data.options.site = site
        values.model.update(model)
        folder = run.prepare_data(parse_config(values).data)
        values.train.epochs = steps * 8 / len(Split(folder, "train"))
        values.train.validate_every = values.train.epochs
        workdir = epath.Path(tmp_path) / name
        train(parse_config(values), workdir)
        result = evaluate_split(workdir, folder, "test", "last", "montgomery_shenzhen")
        return result["summary"]["dice"]["mean"]

    trained("shenzhen", "shenzhen", 40)
    from_scratch = trained("scratch", "montgomery", 6)
    tuned = trained("tuned", "montgomery", 6, pretrained=str(tmp_path / "shenzhen"))
    print("from scratch and tuned:", from_scratch, tuned)
    assert tuned > from_scratch
    assert restore(epath.Path(tmp_path) / "tuned", "last").step == 6
    report = json.loads((tmp_path / "tuned/pretrained.json").read_text())
    assert report["new"] == []
