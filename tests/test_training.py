"""The step and the loop: learning, resuming, stopping, refusing."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import threading
import time

import grain
import jax
import numpy as np
import pytest

from spectral_jax.configs import tiny
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import Split, TrainingSlices
from spectral_jax.data.volumes import DataError
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import restore
from spectral_jax.losses import harmonized_loss
from spectral_jax.training import distributed, sharding
from spectral_jax.training.build import build
from spectral_jax.training.checkpoint import CheckpointError, Checkpoints
from spectral_jax.training.config import ConfigError, MeshConfig, parse_config
from spectral_jax.training.distributed import Preempted
from spectral_jax.training.loop import NonFiniteError, train
from spectral_jax.training.objective import make_objective
from spectral_jax.training.optim import ema_decay_schedule
from spectral_jax.training.step import make_train_step, make_validation_step


@pytest.fixture
def config(mni152, data_dir):
    values = tiny.get_config()
    values.data.data_dir = str(data_dir)
    values.data.image_size = 32
    values.train.save_every_steps = 4
    values.train.log_every_steps = 1
    return parse_config(values)


def changed(config, section, **values):
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def last_state(workdir, config):
    """Every array of the newest checkpoint."""
    built = build(config, Labels(2), 1, sharding.make_mesh(config.mesh))
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(checkpoints.last_step, built.shapes, built.layout)


def assert_equal_states(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def one_batch(mni152):
    slices = TrainingSlices(Split(mni152, "train"), 32)
    examples = [slices[8 * i] for i in range(8)]
    return {key: np.stack([e[key] for e in examples]) for key in ("image", "label")}


@pytest.mark.parametrize("spectral", ["paper", "midband", "none", "matthews"])
def test_the_loss_of_one_batch_falls(config, one_batch, spectral):
    config = changed(config, "objective", spectral=spectral, ramp=0.0)
    step, state = make_step(config, 40)
    batch = sharding.place_batch(one_batch, sharding.make_mesh(config.mesh))
    losses = []
    for _ in range(40):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert ("spectral" in metrics) == (spectral != "none")
    assert int(state.step) == 40


def test_a_run_writes_what_it_should_and_a_finished_one_is_left_alone(config, tmp_path):
    assert train(config, tmp_path / "run")
    written = lines(tmp_path / "run")
    training = [line for line in written if line["kind"] == "train"]
    assert [line["step"] for line in training] == list(range(1, 18))
    assert {"loss", "dice", "cross_entropy", "spectral", "spectral_weight", "learning_rate",
            "gradient_norm", "data_wait_seconds", "step_seconds", "images_per_second",
            "epoch"} <= training[0].keys()  # fmt: skip
    validation = [line for line in written if line["kind"] == "validation"]
    assert {"dice", "loss", "dice/grey matter", "dice/white matter"} <= validation[0].keys()
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.last_step == 17
        best = max(validation, key=lambda line: line["dice"])
        assert checkpoints.best_step == best["step"]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert not train(config, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_validation_dice_and_loss_are_those_of_the_validation_step(config, mni152, tmp_path):
    train(config, tmp_path / "run")
    trained = restore(tmp_path / "run", "last")
    logged = [x for x in lines(tmp_path / "run") if x["kind"] == "validation"][-1]
    slices = TrainingSlices(Split(mni152, "validation"), 32)
    images = np.stack([slices[i]["image"] for i in range(len(slices))])
    predicted = np.concatenate([Predictor(trained).labels(image[None]) for image in images])
    labels = np.stack([slices[i]["label"] for i in range(len(slices))])
    dice = [
        np.mean([2 * ((p == c) & (t == c)).sum() / ((p == c).sum() + (t == c).sum())
                 for p, t in zip(predicted, labels, strict=True)])
        for c in (1, 2)
    ]  # fmt: skip
    assert logged["dice"] == pytest.approx(np.mean(dice), abs=1e-6)
    batch = {"image": images, "label": labels}
    one_device = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), sharding.AXES)
    layout = build(config, Labels(2), 1, one_device).layout
    objective = make_objective(config, Labels(2))
    step = make_validation_step(trained.model, layout, Labels(2), "softmax", objective, 0.1)
    (overlap, true, marked), loss = step(trained.variables, batch)
    logits = trained.model.apply(trained.variables, images.astype(np.float32) / 255, train=False)
    expected = harmonized_loss(
        logits, labels, spatial="dice_ce", spectral="midband", weight=config.objective.weight
    )
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert logged["loss"] == pytest.approx(float(expected), rel=1e-5)  # all are one batch
    for number in (1, 2):
        t, p = labels == number, predicted == number
        for counted, mask in ((true, t), (marked, p), (overlap, t & p)):
            np.testing.assert_array_equal(counted[:, number - 1], mask.sum((1, 2)))


def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_bits(config, tmp_path):
    train(config, tmp_path / "whole")

    def stop_when_it_runs():
        while not (tmp_path / "cut" / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_runs).start()
    with pytest.raises(Preempted, match="saved at step"):
        train(config, tmp_path / "cut")
    with Checkpoints(tmp_path / "cut") as checkpoints:
        stopped_at = checkpoints.last_step
    assert stopped_at < 17
    assert train(config, tmp_path / "cut")
    assert_equal_states(*(last_state(tmp_path / name, config) for name in ("whole", "cut")))
    logs = [
        [(x["kind"], x["step"], x.get("loss")) for x in lines(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_numbers_that_are_not_finite_stop_the_run_and_name_the_cases(config, tmp_path, monkeypatch):
    real = TrainingSlices.__getitem__

    def poisoned(self, record):
        example = real(self, record)
        image = example["image"].astype(np.float32) / 255
        if self.case_name(record) == "axial_050":
            image[3, 3] = np.nan
        return example | {"image": image}

    monkeypatch.setattr(TrainingSlices, "__getitem__", poisoned)
    with pytest.raises(NonFiniteError, match=r"step \d+: .*loss.* not finite.*axial_050"):
        train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        kept = checkpoints.last_step
    if kept is not None:
        state = last_state(tmp_path / "run", config)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_a_learning_rate_that_is_too_high_is_named_with_the_step(config, tmp_path):
    config = changed(config, "optim", name="sgd", learning_rate=1e30)
    with pytest.raises(NonFiniteError, match=r"step \d+: .*loss.* not finite; .* holds axial_\d+"):
        train(config, tmp_path / "run")
    assert all(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("*"))


def truncate(checkpoint):
    """Cuts off half of every file that holds arrays, as a disk that lost power may."""
    files = [path for path in checkpoint.rglob("*") if path.parent.name == "d"]
    assert files
    for file in files:
        os.truncate(file, file.stat().st_size // 2)


def test_a_truncated_checkpoint_is_put_aside_for_the_one_before(config, tmp_path, caplog):
    workdir = tmp_path / "run"
    train(config, workdir)
    before = last_state(workdir, config)
    truncate(workdir / "checkpoints" / "17")
    assert train(config, workdir)
    assert "checkpoints/17 cannot be read" in caplog.text
    assert "trying the one before" in caplog.text
    assert "cannot be read" in (workdir / "damaged-checkpoints" / "17.txt").read_text()
    assert (workdir / "damaged-checkpoints" / "17").is_dir()
    assert_equal_states(last_state(workdir, config), before)

    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    for name in kept:
        truncate(workdir / "checkpoints" / name)
    with pytest.raises(CheckpointError, match="no checkpoint can be read, none was changed"):
        train(config, workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == kept


def test_a_record_that_is_damaged_during_training_is_named(config, mni152, tmp_path, monkeypatch):
    copy = tmp_path / "data"
    shutil.copytree(mni152, copy / mni152.relative_to(config.data.data_dir))
    config = changed(config, "data", data_dir=str(copy))
    (records,) = copy.rglob("*-train.array_record*")
    real = TrainingSlices.__getitem__
    in_turn = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # no thread reads ahead
    monkeypatch.setattr(grain, "ReadOptions", lambda **_: in_turn)

    def overwritten(self, record):
        if len(self._cache) >= 44:  # five batches of eight and a half have been read
            records.write_bytes(bytes(records.stat().st_size))
        return real(self, record)

    monkeypatch.setattr(TrainingSlices, "__getitem__", overwritten)
    with pytest.raises(DataError, match=r"record \d+ of the train split is damaged"):
        train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.last_step == 4
    assert int(last_state(tmp_path / "run", config).step) == 4


def test_a_folder_of_another_run_is_refused(config, tmp_path):
    train(changed(config, "train", epochs=0.5), tmp_path / "run")
    other = changed(changed(config, "train", epochs=0.5), "optim", learning_rate=0.5)
    with pytest.raises(ConfigError, match=r"optim\.learning_rate: 0\.003 there, 0\.5 now"):
        train(other, tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        train(config, tmp_path / "thesis")


def test_misfits_are_named_before_anything_is_written(config, tmp_path):
    with pytest.raises(ValueError, match="multiple of 8"):
        train(changed(config, "train", batch_size=6), tmp_path / "run")
    with pytest.raises(ConfigError, match="choose one of"):
        train(changed(config, "data", name="mni"), tmp_path / "run")
    with pytest.raises(ValueError, match="did you mean 'widths'"):
        train(changed(config, "model", options={"width": (4,)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="holds no run"):
        restore(tmp_path / "run")


def make_step(config, total_steps):
    """The compiled step of a configuration and its first state."""
    built = build(config, Labels(2), 1, sharding.make_mesh(config.mesh), total_steps)
    objective = make_objective(config, Labels(2))
    step = make_train_step(built.model, config, total_steps, built.layout, objective)
    return step, built.first_state(jax.random.key(0))


def test_the_weight_rises_over_the_ramp_in_the_loss_and_in_its_gradient(config, one_batch):
    config = changed(config, "objective", spatial="dice", spectral="midband", weight=4.0, ramp=0.5)
    batch = sharding.place_batch(one_batch, sharding.make_mesh(config.mesh))
    step, state = make_step(config, 8)
    states, losses = [], []
    for expected in (0.0, 1.0, 2.0, 3.0, 4.0, 4.0):
        state, metrics = step(state, batch)
        states.append(jax.device_get(state.params))
        losses.append(float(metrics["loss"]))
        assert float(metrics["spectral_weight"]) == pytest.approx(expected)
        spectral = expected * float(metrics["spectral"])
        assert losses[-1] == pytest.approx(float(metrics["dice"]) + spectral, rel=1e-5)
        assert float(metrics["spectral"]) > 0.01

    step, state = make_step(changed(config, "objective", spectral="none"), 8)
    for ramped in states[:2]:
        state, _ = step(state, batch)
        differ = [
            bool(np.abs(ours - theirs).max() > 1e-6)
            for ours, theirs in zip(
                jax.tree.leaves(ramped), jax.tree.leaves(jax.device_get(state.params)), strict=True
            )
        ]
        assert any(differ) == (ramped is states[1])  # the first step weighs it with 0


def test_the_mean_of_parameters_warms_up(config, one_batch):
    """TensorFlow's formula, and what it is for: after a few steps the start is forgotten."""
    config = changed(config, "optim", ema_decay=0.999, learning_rate=0.1)
    batch = sharding.place_batch(one_batch, sharding.make_mesh(config.mesh))
    step, state = make_step(config, 17)
    expected = jax.device_get(state.params)
    weight_of_start = 1.0
    for number in range(6):
        state, _ = step(state, batch)
        decay = min(0.999, (1 + number) / (10 + number))
        weight_of_start *= decay
        expected = jax.tree.map(
            lambda mean, now, decay=decay: decay * mean + (1 - decay) * np.asarray(now),
            expected,
            state.params,
        )
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6),
        state.ema_params,
        expected,
    )
    assert weight_of_start < 1e-3


def test_the_decay_of_the_mean_ends_where_it_was_set():
    schedule = ema_decay_schedule(parse_config({"optim": {"ema_decay": 0.99}}).optim)
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 1, 8, 890, 891, 10**6)],
        [0.1, 2 / 11, 0.5, 0.99, 0.99, 0.99],
        rtol=1e-6,
    )


def test_the_mean_of_parameters_is_what_is_evaluated(config, tmp_path):
    config = changed(config, "optim", ema_decay=0.5)
    train(config, tmp_path / "run")
    state = last_state(tmp_path / "run", config)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params, state.ema_params)
    assert any(jax.tree.leaves(moved))
    assert_equal_states(restore(tmp_path / "run", "last").variables["params"], state.ema_params)


def test_the_stop_signal_is_put_back():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with distributed.StopSignal(sharding.make_mesh(MeshConfig())):
        assert all(signal.getsignal(n) != b for n, b in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_the_second_interrupt_means_what_it_did_before(capfd):
    with distributed.StopSignal(sharding.make_mesh(MeshConfig())) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed(save=True) == distributed.Request.INTERRUPT
        with pytest.raises(Preempted, match="Ctrl-C: stopped"):
            stop.check("stopped")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop._received = distributed.Request.NOTHING
    assert "again ends at once" in capfd.readouterr().err


def test_what_ends_a_run_goes_from_process_to_process():
    for error in (
        Preempted("SIGTERM: saved", distributed.Request.INTERRUPT),
        NonFiniteError("step 3: loss not finite", 3),
    ):
        other = pickle.loads(pickle.dumps(error))
        assert (str(other), vars(other)) == (str(error), vars(error))
