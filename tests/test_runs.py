"""What is promised of a run: its data, its folder, its checkpoints, its own words about damage."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from spectral_jax.commands.evaluate import evaluate_split
from spectral_jax.commands.train import is_finished
from spectral_jax.configs import tiny
from spectral_jax.data import pipeline
from spectral_jax.data.datasets import DATASETS, Case, DataError, prepare
from spectral_jax.data.datasets.builder import load
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import Split, TrainingSlices
from spectral_jax.inference.trained import restore
from spectral_jax.lock import LockedError, only_writer
from spectral_jax.metrics import overlap
from spectral_jax.reporting.run_page import write_report
from spectral_jax.studies.results import collect
from spectral_jax.training import run, sharding
from spectral_jax.training.build import build
from spectral_jax.training.checkpoint import CheckpointError
from spectral_jax.training.config import Config, ConfigError, parse_config
from spectral_jax.training.loop import NonFiniteError, Validator, train
from spectral_jax.training.objective import make_objective

CLASSES = ("background", "disc", "ring")


def write_pictures(root, count, first=0):
    """Pictures with masks of three classes, in a folder of `folder`'s layout."""
    for split, many in (("train", count), ("validation", 3), ("test", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + many):
            draw = np.random.default_rng(index + 1000 * len(split))
            mask = np.zeros((32, 32), np.uint8)
            top, left = draw.integers(2, 18, 2)
            mask[top : top + 12, left : left + 12] = 1
            mask[top + 4 : top + 8, left + 4 : left + 8] = 2
            image = (60 * mask + draw.integers(0, 60, mask.shape)).astype(np.uint8)
            name = f"{split}{index:02d}.png"
            Image.fromarray(image).save(root / split / "images" / name)
            Image.fromarray(mask).save(root / split / "masks" / name)
    (root / "classes.txt").write_text("\n".join(CLASSES))


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "raw", 8)
    return tmp_path / "raw"


@pytest.fixture
def config(pictures, tmp_path):
    values = tiny.get_config()
    values.data.name = "folder"
    values.data.root = str(pictures)
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.image_size = 32
    values.objective.spectral = "none"
    values.train.batch_size = 8
    values.train.epochs = 2.0
    return parse_config(values)


def changed(config, section, **values):
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run with scores and a report."""
    tmp_path = tmp_path_factory.mktemp("finished")
    write_pictures(tmp_path / "raw", 8)
    values = tiny.get_config()
    values.data.update({"name": "folder", "root": str(tmp_path / "raw")})
    values.data.update({"data_dir": str(tmp_path / "prepared"), "image_size": 32})
    values.train.batch_size = 8
    values.objective.spectral = "none"
    config = parse_config(values)
    workdir = epath.Path(tmp_path) / "run"
    train(config, workdir)
    evaluate_split(workdir, run.prepare_data(config.data), "test", "best", "folder")
    write_report(workdir)
    return config, workdir


@pytest.fixture
def own(finished_run, tmp_path):
    """A copy of it, whose data lie elsewhere."""
    config, workdir = finished_run
    shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(config.data.root, tmp_path / "raw")
    config = changed(config, "data", root=str(tmp_path / "raw"))
    return config, epath.Path(tmp_path) / "run"


# Number 1: identity of data and classes


def test_a_run_goes_on_with_the_same_data_wherever_they_lie(own):
    config, workdir = own
    for path in pathlib.Path(config.data.root).rglob("*.png"):
        os.utime(path, (1, 1))
    assert not train(config, workdir)  # it is finished
    assert run.read_config(workdir).data.root == config.data.root
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        train(changed(config, "train", epochs=4.0), workdir)


def rename_first(root):
    for kind in ("images", "masks"):
        folder = root / "train" / kind
        (folder / "train00.png").rename(folder / "train99.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: write_pictures(root, 1, first=8), "train: other images, labels or cases"),
        (
            lambda root: (root / "classes.txt").write_text("background\nring\ndisc"),
            r"classes: \('background', 'disc', 'ring'\) there, \('background', 'ring', 'disc'\)",
        ),
        (
            lambda root: Image.new("L", (32, 32), 9).save(root / "test" / "images" / "test00.png"),
            r"data:\n  test: other images, labels or cases",
        ),
        (rename_first, r"data:\n  train: other images, labels or cases, or in another order"),
    ],
    ids=["added", "classes in another order", "a picture of the test split", "renamed"],
)
def test_other_data_under_a_run_are_refused(own, change, message):
    config, workdir = own
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(workdir).rglob("*")}
    change(pathlib.Path(config.data.root))
    with pytest.raises(ConfigError, match=message):
        train(config, workdir)
    with pytest.raises(ConfigError, match=message):
        evaluate_split(workdir, run.prepare_data(config.data), "test", "best", "folder")
    assert {p: p.stat().st_mtime_ns for p in pathlib.Path(workdir).rglob("*")} == before


def test_checksums_are_of_contents_not_of_files(pictures, tmp_path):
    def checksums(root):
        folder = prepare(DATASETS["folder"], root=root, data_dir=tmp_path / "prepared")
        return Split(folder, "train").info.checksums

    before = checksums(pictures)
    assert before.keys() == {"train", "validation", "test"}
    for file in pictures.rglob("images/*.png"):  # the same pixels, other bytes
        with Image.open(file) as image:
            image.save(file, compress_level=0)
    assert checksums(pictures) == before
    file = pictures / "validation" / "masks" / "validation01.png"
    mask = np.array(Image.open(file))
    mask[0, 0] = 1
    Image.fromarray(mask).save(file)
    after = checksums(pictures)
    assert {split for split in after if after[split] != before[split]} == {"validation"}


# Number 2: one writer


def test_a_run_that_another_process_trains_is_refused(own, monkeypatch):
    config, workdir = own
    with only_writer(workdir):
        monkeypatch.setattr("spectral_jax.lock._held", {})  # as another process sees it
        with pytest.raises(LockedError, match="writes there"):
            train(config, workdir)


# Number 3: lists


def test_a_class_named_twice_is_refused(pictures, tmp_path):
    (pictures / "classes.txt").write_text("background\ndisc\ndisc")
    with pytest.raises(DataError, match="'disc' appears twice"):
        prepare(DATASETS["folder"], root=pictures, data_dir=tmp_path / "prepared")


def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path):
    """Whoever opens it waits for ever."""
    os.mkfifo(tmp_path / "image.nii.gz")
    with pytest.raises(DataError, match=r"image\.nii\.gz: no regular file"):
        load(Case("a", (tmp_path / "image.nii.gz",), lambda: pytest.fail("opened")))


def test_files_added_below_a_link_are_seen(pictures, tmp_path):
    (pictures / "train").rename(tmp_path / "other_disk")
    (pictures / "train").symlink_to(tmp_path / "other_disk")
    (pictures / "loop").symlink_to(pictures)  # which has no end

    def cases():
        folder = prepare(DATASETS["folder"], root=pictures, data_dir=tmp_path / "prepared")
        return len(Split(folder, "train").cases)

    assert cases() == 8
    write_pictures(pictures, 1, first=8)
    assert cases() == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resplit": "maybe"}, "option resplit='maybe': expected true or false"),
        ({"validation": "some"}, "expected a number"),
        ({"validation": 1.5}, "expected a share"),
        ({"threshold": "dark"}, "expected a whole number"),
        ({"classes": 3}, "expected a list, each text"),
        ({"case_pattern": 3}, "expected text"),
        ({"tresh": 3}, "did you mean 'threshold'"),
    ],
)
def test_options_that_no_reader_has_are_one_error(pictures, tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        prepare(DATASETS["folder"], root=pictures, data_dir=tmp_path / "prepared", **options)
    assert not (tmp_path / "prepared").exists()


def test_false_means_false(pictures, tmp_path):
    folders = [
        prepare(DATASETS["folder"], root=pictures, data_dir=tmp_path / "prepared", resplit=given)
        for given in ("false", False, "true")
    ]
    assert folders[0] == folders[1] != folders[2]


# Number 5: the best checkpoint, and validation


class Dice:
    """A validation whose Dice is known: best in the middle, far from the last."""

    def __init__(self, *_):
        self.available = True

    def scores(self, state):
        step = int(state.step)
        return {"dice": 0.9 if step == 2 else 0.5 - step / 100}


def test_the_best_checkpoint_survives_later_worse_ones(config, tmp_path, monkeypatch):
    monkeypatch.setattr("spectral_jax.training.loop.Validator", Dice)
    config = changed(config, "train", epochs=6.0, validate_every=2.0, save_every_steps=3)
    train(config, tmp_path / "run")
    assert steps(tmp_path / "run") == [2, 4, 6]
    best, newest = (restore(tmp_path / "run", name) for name in ("best", "last"))
    assert (best.step, newest.step) == (2, 6)
    differ = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), best.variables["params"], newest.variables["params"]
    )
    assert all(jax.tree.leaves(differ))


def test_validation_counts_each_case_once(config):
    """Three cases in a batch of eight, which five repetitions fill up."""
    folder = run.prepare_data(config.data)
    built = build(config, Labels(2), 1, sharding.make_mesh(config.mesh))
    state = built.first_state(jax.random.key(3))
    data = Split(folder, "train").info
    objective = make_objective(config, data.labels)
    found = Validator(config, built, folder, data, objective).scores(state)

    examples = TrainingSlices(Split(folder, "validation"), 32)
    images = np.stack([examples[index]["image"] for index in range(3)]).astype(np.float32) / 255
    predicted = np.asarray(built.model.apply(state.variables, images, train=False)).argmax(-1)
    of_cases = np.stack(
        [
            overlap.dice(overlap.overlap_counts(one, examples[index]["label"], 3))
            for index, one in enumerate(predicted)
        ]
    )
    for number, name in enumerate(CLASSES[1:], start=1):
        assert found[f"dice/{name}"] == pytest.approx(np.nanmean(of_cases[:, number]))
    # the last case alone would weigh six times: its Dice differs from the others'
    assert len(set(np.round(of_cases[:, 1], 6))) == 3


# Number 9: nothing is claimed before the first step


@pytest.mark.parametrize(
    ("section", "values", "error"),
    [
        ("model", {"pretrained": "/nowhere/weights.npz"}, "nowhere"),
        ("model", {"options": {"norm": "bach"}}, "norm='bach'"),
        ("model", {"options": {"widths": "wide"}}, "expected a list"),
        ("optim", {"name": "sgd", "learning_rate": 1e38}, "not finite"),
    ],
)
def test_a_failed_start_claims_nothing(config, tmp_path, section, values, error):
    workdir = tmp_path / "run"
    config = changed(config, "train", validate_every=2.0)
    wrong = changed(config, section, **values)
    with pytest.raises((ValueError, OSError, NonFiniteError), match=error):
        train(wrong, workdir)
    if section != "optim":
        assert not workdir.exists()
    assert train(config, workdir)
    assert run.read_config(workdir).optim == config.optim


def test_after_numbers_that_are_not_finite_a_lower_rate_resumes(config, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    config = changed(config, "train", epochs=6.0, save_every_steps=1, validate_every=6.0)
    real = pipeline.training_batches

    def poisoned(*args, **options):
        """Batches as they are taken; threads read ahead, some later than others."""
        for step, batch in enumerate(real(*args, **options), start=1):
            factor = np.float32(1 / 255 if step < 4 else np.nan)
            yield batch | {"image": batch["image"] * factor}

    monkeypatch.setattr(pipeline, "training_batches", poisoned)
    with pytest.raises(NonFiniteError, match="in the same folder with a lower learning rate"):
        train(config, workdir)
    monkeypatch.undo()
    saved = steps(workdir)[-1]
    assert saved == 3

    lower = changed(config, "optim", learning_rate=1e-4, clip_norm=1.0)
    with pytest.raises(ConfigError, match=r"train\.seed"):
        train(changed(lower, "train", seed=1), workdir)
    assert train(lower, workdir)
    assert run.read_config(workdir).optim.learning_rate == 1e-4
    (change,) = json.loads((workdir / "changes.json").read_text())["changes"]
    assert change["step"] == saved
    assert change["optim.learning_rate"] == [3e-3, 1e-4]
    assert f"optim.learning_rate until step {saved}" in write_report(workdir).read_text()
    with pytest.raises(ConfigError, match=r"optim\.learning_rate"):
        train(config, workdir)  # it went past the step where it had stopped


# Number 10: saving by time


def test_it_saves_by_time_too(config, tmp_path):
    config = changed(
        config, "train", epochs=3.0, validate_every=3.0, save_every_steps=10**6,
        save_every_minutes=1e-9,
    )  # fmt: skip
    train(config, tmp_path / "run")
    assert steps(tmp_path / "run") == [2, 3]
    train(changed(config, "train", save_every_minutes=60.0), tmp_path / "other")
    assert steps(tmp_path / "other") == [3]


# Numbers 7 and 11: damage


def cut(file):
    os.truncate(file, os.stat(file).st_size // 2)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b"[]"),
        ("config.json", b'{"data": 3}'),
        ("config.json", b"\xff\xfe\x00"),
        ("dataset.json", None),
        ("dataset.json", b'{"name": "folder"}'),
        ("dataset.json", b'{"nme": 1}'),
        ("checkpoints", b""),
    ],
)
def test_a_damaged_file_of_a_run_is_one_error_with_its_name(own, name, content):
    config, workdir = own
    if content is None:
        cut(workdir / name)
    else:
        if (workdir / name).is_dir():
            (workdir / name).rmtree()
        (workdir / name).write_bytes(content)
    for read in (lambda: restore(workdir), lambda: train(config, workdir)):
        with pytest.raises((ConfigError, ValueError, CheckpointError), match=name) as error:
            read()
        assert "\n" not in str(error.value).strip()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"classes": 3, "colors": 4}', b'{"classes": ["a"]}']
)
def test_a_damaged_evaluation_is_named_by_the_report_and_made_again(own, content):
    _, workdir = own
    file = workdir / "evaluation" / "folder-test.json"
    file.write_bytes(content)
    assert not is_finished(workdir, "folder")
    with pytest.raises(ValueError, match=r"folder-test\.json.*run spectral-jax evaluate again"):
        write_report(workdir)


@pytest.mark.parametrize("name", ["evaluation/folder-test-examples.npz", "metrics.jsonl"])
def test_damaged_examples_and_metrics(own, name):
    config, workdir = own
    cut(workdir / name)
    if name.endswith("npz"):
        with pytest.raises(ValueError, match=r"folder-test\.json, or the examples beside it"):
            write_report(workdir)
    else:
        with (workdir / name).open("ab") as file:
            file.write(b'\xff\xfe\n[]\n{"kind": "train"}\n{"kind": "train", "step": "x"}\n')
        assert b"unreadable lines" in write_report(workdir).read_bytes()
        (workdir / "checkpoints" / "2").rmtree()  # the steps since then come again
        assert train(config, workdir)
        assert all(json.loads(line)["step"] for line in (workdir / name).read_text().splitlines())


def test_a_run_is_finished_when_all_it_promises_is_there_and_whole(own):
    _, workdir = own
    assert is_finished(workdir, "folder")
    cut(workdir / "report.html")
    assert not is_finished(workdir, "folder")
    write_report(workdir)
    assert is_finished(workdir, "folder")
    file = workdir / "evaluation" / "folder-test.json"
    scores = json.loads(file.read_text())
    scores["checkpoint"]["step"] += 1  # of another checkpoint
    file.write_text(json.dumps(scores))
    assert not is_finished(workdir, "folder")


@pytest.mark.parametrize("content", [b"", b'{"arms": ', b"[]"])
def test_a_damaged_study_is_one_error_with_its_name(tmp_path, content):
    (tmp_path / "study.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"study\.json is damaged .*: run the study again"):
        collect(tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_descriptions_of_prepared_sets_are_named(config, name):
    folder = run.prepare_data(config.data)
    cut(folder / name)
    with pytest.raises(DataError, match=r"damaged .*; delete this folder and start again"):
        Split(folder, "train")


# Number 8: paths


@pytest.mark.parametrize("name", ["run[1]", "a*", "back\\slash", os.fsdecode(b"\xff")])
def test_paths_that_checkpoints_cannot_have_are_refused_before_the_first_step(
    config, tmp_path, name
):
    with pytest.raises(CheckpointError, match="use another --workdir"):
        train(config, epath.Path(tmp_path) / name)
    assert not (tmp_path / name).exists()
    assert not (tmp_path / "back").exists()


def test_paths_with_spaces_newlines_and_emoji(config, pictures, tmp_path):
    name = "a b\nc \N{SKULL} 'd' {e} %20#"
    raw = pictures.rename(tmp_path / f"[raw] \\ {name}")
    config = changed(config, "data", root=str(raw), data_dir=str(tmp_path / name / "prepared"))
    workdir = epath.Path(tmp_path) / name / "run"
    assert train(config, workdir)
    assert restore(workdir, "last").step == 2
    assert not train(config, workdir)
    assert write_report(workdir).exists()


# Number 12: settings


def test_every_number_has_its_range():
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            value = getattr(getattr(Config(), section.name), field.name)
            if isinstance(value, int | float | tuple) and not isinstance(value, bool):
                assert "range" in field.metadata, f"config.{section.name}.{field.name}"


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("train", {"batch_size": 0}),
        ("train", {"accumulate": 0}),
        ("train", {"seed": -1}),
        ("train", {"seed": 2**32}),
        ("train", {"epochs": 0}),
        ("train", {"log_every_steps": 0}),
        ("train", {"save_every_minutes": 0.0}),
        ("train", {"validate_every": -1.0}),
        ("data", {"image_size": 10**9}),
        ("data", {"patch_size": (8,)}),
        ("data", {"foreground": 1.5}),
        ("data", {"spacing_mm": (1.0, 1.0)}),
        ("data", {"spacing_mm": (1.0, 0.0)}),
        ("data", {"patch_size": (8, 8, 0)}),
        ("data", {"patch_size": (8, 8, 0.5)}),
        ("data", {"patch_size": ("a", 8, 8)}),
        ("augment", {"rotation_degrees": 1e9}),
        ("augment", {"shift": 1.5}),
        ("augment", {"gamma": 1000.0}),
        ("augment", {"noise": -0.1}),
        ("objective", {"weight": 1e300}),
        ("optim", {"learning_rate": 0.0}),
        ("optim", {"learning_rate": 1e-300}),
        ("optim", {"learning_rate": 1e300}),
        ("optim", {"poly_power": -1.0}),
        ("optim", {"clip_norm": -1.0}),
        ("optim", {"ema_decay": 1.0}),
        ("optim", {"momentum": 1.0}),
        ("mesh", {"data": 0}),
        ("mesh", {"fsdp": 0}),
    ],
)
def test_numbers_out_of_range_are_named(section, values):
    (key,) = values
    with pytest.raises(ConfigError, match=rf"config\.{section}\.{key}=.*: expected "):
        parse_config({section: values})
