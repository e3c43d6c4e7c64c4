"""Pixels that do not count, and classes that overlap, from files to scores and predictions."""

import csv
import json
import subprocess
import sys

import jax
import nibabel
import numpy as np
import pytest
from PIL import Image
from raw_data import link
from scipy import ndimage

from spectral_jax.configs import folder as folder_config
from spectral_jax.configs import hippocampus_3d, tiny
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import Split, TrainingSlices
from spectral_jax.evaluation.calibrate import measure_calibration
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.evaluation.robustness import measure_robustness
from spectral_jax.inference.export import run_stablehlo, write_bundle
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import restore
from spectral_jax.metrics.surface import nsd, surface_distances
from spectral_jax.reporting.run_page import write_report
from spectral_jax.training import run, sharding
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.loop import train
from spectral_jax.training.objective import make_objective

HEART = ("right ventricle", "myocardium", "left ventricle")


def trained_run(values, workdir, steps):
    """Trains for some steps; returns the network and its data set's folder."""
    folder = run.prepare_data(parse_config(values).data)
    split = Split(folder, "train")
    examples = len(split.cases) if values.data.patch_size else len(split)
    values.train.epochs, values.train.steps = steps * values.train.batch_size / examples, 0
    values.train.validate_every = values.train.epochs
    train(parse_config(values), workdir)
    return restore(workdir, "last"), folder


def logged(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [line for line in lines if line["kind"] == "train"], lines[-1]


@pytest.fixture(scope="module")
def heart_in_a_band(shared_data, tmp_path_factory):
    """Slices of six patients with a band of 255 around each heart, and the bands by file."""
    root = tmp_path_factory.mktemp("acdc")
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    bands = {}
    for patient in (
        "train/*/patient003",
        "train/*/patient004",
        "val/*/patient002",
        "test/*/patient001",
    ):
        for path in sorted((shared_data / "ACDC_png").glob(f"{patient}_frame01*.png")):
            array = np.asarray(Image.open(path))
            if path.parent.name == "masks":
                heart = array > 0
                band = ndimage.binary_dilation(heart, iterations=12) & ~heart
                array = np.where(band, np.uint8(255), array)
                bands[path.stem] = band
            Image.fromarray(array).save(root / path.parent.name / path.name)
    assert len(bands) == 40
    return root, bands


def heart_config(root, tmp_path):
    values = tiny.get_config()
    values.data.name = "acdc"
    values.data.root = str(root)
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.options.ignore_label = 255
    values.data.image_size = 48
    values.train.batch_size = 8
    values.train.log_every_steps = 1
    return values


@pytest.mark.parametrize("spatial", ["dice_ce", "tversky"])
@pytest.mark.parametrize("spectral", ["paper", "midband"])
def test_a_band_around_the_heart_has_no_gradient(heart_in_a_band, spatial, spectral):
    root, _ = heart_in_a_band
    values = heart_config(root, root.parent)
    values.objective.spatial, values.objective.spectral = spatial, spectral
    config = parse_config(values)
    split = Split(run.prepare_data(config.data), "train")
    slices = TrainingSlices(split, 48)
    label = np.stack([slices[i]["label"] for i in range(0, 16, 2)])
    band = label == 255
    assert 0.02 < band.mean() < 0.5
    objective = make_objective(config, split.info.labels)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), sharding.AXES)
    P = jax.sharding.PartitionSpec
    loss = jax.shard_map(
        lambda logits, label, weight: objective(logits, label, weight)["loss"],
        mesh=mesh,
        in_specs=(P(sharding.AXES), P(sharding.AXES), P()),
        out_specs=P(),
    )
    logits = jax.random.normal(jax.random.key(0), (*label.shape, 4))
    gradient = np.asarray(jax.jit(jax.grad(loss))(logits, label, np.float32(0.5)))
    assert (gradient[band] == 0).all()
    assert (np.abs(gradient[~band]).max(-1) > 0).all()


@pytest.mark.slow
def test_scores_leave_a_band_around_the_heart_out(heart_in_a_band, tmp_path):
    """Against a reference in numpy; and in validation, robustness and calibration."""
    root, bands = heart_in_a_band
    trained, folder = trained_run(heart_config(root, tmp_path), tmp_path / "run", steps=12)
    split = Split(folder, "test")
    result = evaluate(trained, split, tmp_path / "run", "last", nsd_tolerance=3.0)
    assert len(split.cases) == 1
    image = np.stack([split.slice(record)[0] for record in range(len(split))])
    predicted = Predictor(trained).labels(image)
    band = np.stack([bands[name] for name in sorted(bands) if name.startswith("patient001")])
    files = sorted((root / "masks").glob("patient001*"))
    truth = np.stack([np.asarray(Image.open(path)) for path in files])
    assert (truth[band] == 255).all()
    assert ((predicted > 0) & band).sum() > 100  # without the band these were false positives
    for row, number in zip(result["cases"], (1, 2, 3), strict=True):
        t, p = ((of == number) & ~band for of in (truth, predicted))
        assert row["class"] == HEART[number - 1]
        assert row["dice"] == pytest.approx(2 * (t & p).sum() / (t.sum() + p.sum()), abs=1e-12)
        assert row["predicted_voxels"] == p.sum()
        expected = nsd(surface_distances(p, t), 3.0)
        assert row["nsd"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert "NSD (3.0 px)" in write_report(tmp_path / "run").read_text()

    # at the training size, every validation step
    config = trained.config.data
    slices = TrainingSlices(Split(folder, "validation"), config.image_size)
    images, labels = (
        np.stack([slices[i][key] for i in range(len(slices))]) for key in ("image", "label")
    )
    predicted, counted = Predictor(trained).labels(images), labels != 255
    dice = [
        2 * ((predicted == c) & (labels == c)).sum()
        / (((predicted == c) & counted).sum() + (labels == c).sum())
        for c in (1, 2, 3)
    ]  # fmt: skip
    steps, validation = logged(tmp_path / "run")
    assert validation["dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    assert steps[-1]["loss"] < steps[0]["loss"]

    robustness = measure_robustness(
        trained, split, tmp_path / "run", corruptions=("gaussian",), severities=(1,)
    )
    for row, of_class in zip(robustness["clean"]["cases"], result["cases"], strict=True):
        assert row["dice"] == pytest.approx(of_class["dice"], abs=0.02)
    calibration = measure_calibration(trained, split, Split(folder, "validation"), tmp_path / "run")
    pixels = calibration["regions"]["all"]["as_trained"]["reliability"]["count"]
    assert sum(pixels) == (~band).sum()


@pytest.fixture(scope="module")
def regions_run(shared_data, tmp_path_factory):
    """The hippocampus as a whole and its front part, which lies within."""
    root = tmp_path_factory.mktemp("regions")
    files = r"dataset\.json|.*_(00[478]|01[14]|023)\.nii\.gz"
    values = hippocampus_3d.get_config()
    values.data.root = str(link(shared_data / "Task04_Hippocampus", root / "raw", files))
    values.data.data_dir = str(root / "prepared")
    values.data.options.regions = {"whole": (1, 2), "front": ("Anterior",)}
    values.data.patch_size = (16, 16, 16)
    values.model.unet.widths = (4, 8)
    values.objective.spatial = {
        "cross_entropy": {"class_weights": "frequency"},
        "dice": {"pooling": "batch"},
    }
    values.optim.learning_rate = 1e-2
    values.train.batch_size = 8
    values.train.log_every_steps = 1
    trained, folder = trained_run(values, root / "run", steps=16)
    return trained, folder, root


@pytest.mark.slow
def test_regions_that_overlap_are_trained_and_scored(regions_run):
    trained, folder, root = regions_run
    assert trained.activation == "sigmoid"
    assert trained.labels == Labels(2, overlapping=True)
    split = Split(folder, "test")
    (case,) = split.cases
    volume = split.volume(case)
    raw = nibabel.load(root / f"raw/labelsTr/{case}.nii.gz").get_fdata().T
    # in the order of their names, as a configuration has them
    np.testing.assert_array_equal(trained.labels.mask(volume.label, 1), raw == 1)
    np.testing.assert_array_equal(trained.labels.mask(volume.label, 2), raw > 0)

    result = evaluate(trained, split, root / "run", "last", threshold=0.4)
    assert [row["class"] for row in result["cases"]] == ["front", "whole"]
    probabilities = np.stack(list(Predictor(trained).slices([volume.image])))
    assert probabilities.shape == (*raw.shape, 2)
    for row, of_class, truth in zip(
        result["cases"], np.moveaxis(probabilities, -1, 0), (raw == 1, raw > 0), strict=True
    ):
        found = of_class > 0.4
        expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert row["dice"] == pytest.approx(expected, abs=1e-12)
    losses = [step["loss"] for step in logged(root / "run")[0]]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert result["threshold"] == 0.4
    assert "above 0.4" in write_report(root / "run").read_text()
    robustness = measure_robustness(
        trained, split, root / "run", corruptions=("gaussian",), severities=(1,)
    )
    assert len(robustness["clean"]["cases"]) == 2
    with pytest.raises(ValueError, match="may overlap"):
        measure_calibration(trained, split, split, root / "run")


@pytest.mark.slow
def test_regions_are_predicted_as_a_file_each_and_exported(regions_run):
    trained, _, root = regions_run
    scan = root / "raw/imagesTr/hippocampus_023.nii.gz"
    command = [sys.executable, "-m", "experiments.predict", f"--workdir={root / 'run'}"]
    command += [f"--input={scan}", f"--output={root / 'out'}", "--checkpoint=last", "--overlays"]
    done = subprocess.run([*command, "--threshold=0.3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((root / "out/summary.csv").open())
    image = nibabel.load(scan)
    for name, file in zip(("front", "whole"), row["output"].split(";"), strict=True):
        mask = nibabel.load(file)
        assert file == str(root / f"out/{name}/hippocampus_023.nii.gz")
        np.testing.assert_array_equal(mask.affine, image.affine)
        values = np.asarray(mask.dataobj)
        assert values.shape == image.shape
        assert set(np.unique(values)) == {0, 1}
        millilitres = values.sum() * np.prod(image.header.get_zooms()) / 1000
        assert float(row[name]) == pytest.approx(millilitres, rel=1e-4)
    assert (root / "out/hippocampus_023_overlay.png").exists()

    facts = write_bundle(trained, root / "run", root / "bundle", checkpoint="last")
    assert facts["output"]["activation"] == "sigmoid"
    assert facts["output"]["channels"] == ["front", "whole"]
    assert "probabilities > 0.5" in (root / "bundle/README.md").read_text()
    images = np.zeros((1, 16, 16, 16, 1), np.float32)
    assert run_stablehlo((root / "bundle/model.jax").read_bytes(), images).shape[-1] == 2


def test_a_softmax_over_overlapping_classes_is_refused(regions_run, tmp_path):
    *_, root = regions_run
    values = hippocampus_3d.get_config()
    values.data.root, values.data.data_dir = str(root / "raw"), str(root / "prepared")
    values.data.options.regions = {"whole": (1, 2), "front": ("Anterior",)}
    values.model.activation = "softmax"
    with pytest.raises(ConfigError, match="classes of this data set overlap"):
        train(parse_config(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_one_channel_with_a_sigmoid(shared_data, tmp_path):
    """Two classes as one channel, from the folder configuration, with losses by keywords."""
    values = folder_config.get_config()
    root = tmp_path / "raw"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for path in sorted((shared_data / "Kvasir-SEG_256" / kind).iterdir())[:20]:
            (root / kind / path.name).symlink_to(path)
    values.data.root = str(root)
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.image_size = 32
    values.model.unet.widths = (4, 8)
    values.model.activation = "sigmoid"
    values.objective.spatial = {
        "cross_entropy": {"label_smoothing": 0.05},
        "tversky": {"beta": 0.8, "alpha": 0.2},
    }
    values.train.log_every_steps = 1
    trained, folder = trained_run(values, tmp_path / "run", steps=16)
    assert trained.model.num_classes == 1
    steps, _ = logged(tmp_path / "run")
    assert {"cross_entropy", "tversky", "spectral"} <= steps[0].keys()
    assert np.mean([s["loss"] for s in steps[-4:]]) < np.mean([s["loss"] for s in steps[:4]])
    split = Split(folder, "test")
    result = evaluate(trained, split, tmp_path / "run", "last")
    assert len(result["cases"]) == 4
    assert {row["class"] for row in result["cases"]} == {"foreground"}
    # a threshold that nothing reaches
    nothing = evaluate(trained, split, tmp_path / "run", "last", threshold=1 - 1e-6)
    assert {row["predicted_voxels"] for row in nothing["cases"]} == {0}
