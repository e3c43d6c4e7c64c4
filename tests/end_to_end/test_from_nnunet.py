"""From nnU-Net's folder to scores and masks, by the commands of `from_nnunet_or_monai.md`."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from raw_data import split_channels, write_four_channels, write_nnunet

from spectral_jax.configs import hippocampus_3d, tiny
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.inference.trained import restore
from spectral_jax.training import run
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = tuple(f"hippocampus_{number:03d}" for number in (4, 7, 8, 11, 14, 20, 25, 26, 33))
FOLD_0 = ("hippocampus_004", "hippocampus_025")
TEST = ("hippocampus_023", "hippocampus_024")


def command(name, *arguments):
    environment = os.environ | {"XLA_FLAGS": ""}
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained_on_nnunet(shared_data, tmp_path_factory):
    """A run of one command on nnU-Net's folders, as nnU-Net lays them out."""
    home = tmp_path_factory.mktemp("home")
    root = home / "nnUNet_raw/Dataset004_Hippocampus"
    write_nnunet(shared_data / "Task04_Hippocampus", root, NAMES, TEST)
    splits = [{"train": [n for n in NAMES if n not in FOLD_0], "val": list(FOLD_0)}]
    published = home / f"nnUNet_preprocessed/{root.name}/splits_final.json"
    published.parent.mkdir(parents=True)
    published.write_text(json.dumps(splits))
    output = command(
        "train",
        "--config=spectral_jax/configs/nnunet.py",
        f"--config.data.root={root}",
        f"--config.data.data_dir={home / 'prepared'}",
        "--config.data.patch_size=(16,16,16)",
        "--config.model.unet.widths=(4,8)",
        "--config.train.batch_size=4",
        "--config.train.epochs=4.0",
        "--config.train.validate_every=2.0",
        f"--workdir={home / 'run'}",
    )
    return home, root, output


@pytest.mark.slow
def test_one_command_trains_and_scores(trained_on_nnunet):
    home, _, output = trained_on_nnunet
    assert "Anterior" in output
    result = json.loads((home / "run/evaluation/nnunet-test.json").read_text())
    assert {row["case"] for row in result["cases"]} == set(TEST)
    assert result["distance_unit"] == "mm"
    data = run.read_dataset_info(home / "run")
    assert data.patch_spacing_mm == (1.0, 1.0, 1.0)
    folder = run.prepare_data(run.read_config(home / "run").data)
    assert set(Split(folder, "validation").cases) == set(FOLD_0)
    assert set(Split(folder, "train").cases) == set(NAMES) - set(FOLD_0)
    assert (home / "run/report.html").exists()


@pytest.mark.slow
def test_fold_0_is_evaluated_and_new_scans_are_predicted(trained_on_nnunet):
    home, root, _ = trained_on_nnunet
    command("evaluate", f"--workdir={home / 'run'}", "--split=validation")
    result = json.loads((home / "run/evaluation/nnunet-validation.json").read_text())
    assert {row["case"] for row in result["cases"]} == set(FOLD_0)
    command(
        "predict",
        f"--workdir={home / 'run'}",
        f"--input={root / 'imagesTs'}",
        f"--output={home / 'masks'}",
    )
    rows = list(csv.DictReader((home / "masks/summary.csv").open()))
    assert len(rows) == 2
    for row in rows:
        scan, mask = nibabel.load(row["input"]), nibabel.load(row["output"])
        assert mask.shape == scan.shape
        np.testing.assert_array_equal(mask.affine, scan.affine)


@pytest.mark.slow
def test_four_channels_train_and_are_predicted(shared_data, tmp_path):
    """A 4-D file, and nnU-Net's four files side by side, by the command."""
    values = hippocampus_3d.get_config()
    root = write_four_channels(shared_data / "Task04_Hippocampus", tmp_path / "raw", NAMES[:6])
    values.data.root, values.data.data_dir = str(root), str(tmp_path / "prepared")
    values.data.options.regions = {"whole": (1, 2), "front": ("Anterior",)}
    values.data.patch_size = (16, 16, 16)
    values.model.unet.widths = (4, 8)
    values.train.batch_size = 8
    values.train.epochs = 16.0
    train(parse_config(values), tmp_path / "run")
    trained = restore(tmp_path / "run", "last")
    assert trained.data.channel_names == ("FLAIR", "T1w", "t1gd", "T2w")
    assert trained.data.intensity == ("mri_percentile",) * 4
    split = Split(run.prepare_data(parse_config(values).data), "test")
    result = evaluate(trained, split, tmp_path / "run", "last")
    assert {row["class"] for row in result["cases"]} == {"whole", "front"}

    whole = tmp_path / f"in/{NAMES[0]}.nii.gz"
    split_channels(root / f"imagesTr/{NAMES[0]}.nii.gz", tmp_path / "in/apart")
    whole.symlink_to(root / f"imagesTr/{NAMES[0]}.nii.gz")
    command(
        "predict",
        f"--workdir={tmp_path / 'run'}",
        "--checkpoint=last",
        f"--input={tmp_path / 'in'}",
        f"--output={tmp_path / 'out'}",
        "--overlays",
    )
    rows = list(csv.DictReader((tmp_path / "out/summary.csv").open()))
    assert [row["error"] for row in rows] == ["", ""]
    assert (tmp_path / f"out/apart/{NAMES[0]}_overlay.png").exists()
    for region in ("whole", "front"):
        together, apart = (
            nibabel.load(tmp_path / f"out/{region}/{place}{NAMES[0]}.nii.gz")
            for place in ("", "apart/")
        )
        assert together.shape == nibabel.load(whole).shape[:3]
        np.testing.assert_array_equal(apart.get_fdata(), together.get_fdata())


@pytest.mark.slow
def test_patches_of_slices_at_another_spacing(mni152, data_dir, tmp_path):
    """A network of two dimensions on crops, at 1.5 mm; scores are at the slices' own 1 mm."""
    values = tiny.get_config()
    values.data.data_dir = str(data_dir)
    values.data.patch_size = (32, 32)
    values.data.spacing_mm = (1.5, 1.5)
    values.train.epochs = 4.0
    train(parse_config(values), tmp_path / "run")
    trained = restore(tmp_path / "run", "last")
    assert trained.data.patch_spacing_mm == (1.5, 1.5)
    split = Split(mni152, "test")
    result = evaluate(trained, split, tmp_path / "run", "last")
    assert len(result["cases"]) == 2 * len(split.cases)
    for row in result["cases"][:2]:
        number = 1 + ("white" in row["class"])
        assert row["true_voxels"] == (split.volume(row["case"]).label == number).sum()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
