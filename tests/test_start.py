"""What a run starts from, how long it is trained, and how it is trained longer."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_networks
from etils import epath
from test_runs import changed, write_pictures

from spectral_jax.configs import tiny
from spectral_jax.evaluation.postprocess import decide_if_asked
from spectral_jax.inference.trained import restore
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.loop import Pace, duration, train
from spectral_jax.training.run import prepare_data, read_config


def small_config(root, **options):
    """Three classes in eight pictures, a step an epoch."""
    values = tiny.get_config()
    values.data.update({"name": "folder", "root": str(root / "raw")})
    values.data.update({"data_dir": str(root / "prepared"), "image_size": 32})
    values.data.options.update(options)
    values.objective.spectral = "none"
    values.train.update({"batch_size": 8, "epochs": 3.0, "log_every_steps": 1})
    return parse_config(values)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A finished run, and its configuration."""
    root = tmp_path_factory.mktemp("earlier")
    write_pictures(root / "raw", 8)
    config = small_config(root)
    train(config, epath.Path(root) / "run")
    return config, epath.Path(root) / "run"


def lines(workdir, kind="train"):
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in read if line["kind"] == kind]


def parameters(workdir, checkpoint="last"):
    return restore(workdir, checkpoint).variables


def assert_close(ours, theirs, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


# a rate that changes nothing: what a run starts from can be read from its checkpoint
STANDING = {"name": "sgd", "learning_rate": 1e-12, "weight_decay": 0.0}


def test_a_run_starts_from_the_last_checkpoint_of_another(earlier, tmp_path, capsys):
    config, source = earlier
    config = changed(config, "model", pretrained=str(source), pretrained_checkpoint="last")
    config = changed(changed(config, "optim", **STANDING), "train", epochs=1.0)
    workdir = epath.Path(tmp_path) / "run"
    train(config, workdir)
    ours, theirs = (parameters(of)["params"] for of in (workdir, source))
    assert_close(ours, theirs, atol=1e-9)
    report = json.loads((workdir / "pretrained.json").read_text())
    assert report["from"] == str(source)
    assert report["checkpoint"] == {"name": "last", "step": 3}
    assert (report["part"], report["fitted"], report["new"]) == ("all", {}, [])
    count = len(jax.tree.leaves(parameters(workdir)))
    assert len(report["loaded"]) == count
    said = f"starting from {source} (last checkpoint, step 3): {count} arrays loaded, 0 new"
    assert said in capsys.readouterr().err


def test_other_classes_have_a_new_last_layer_and_the_source_is_needed_once(
    earlier, tmp_path, capsys
):
    _, source = earlier
    shutil.copytree(source, tmp_path / "source")
    write_pictures(tmp_path / "raw", 8)
    (tmp_path / "raw" / "classes.txt").write_text("background\nring\ndisc")
    config = changed(small_config(tmp_path), "model", pretrained=str(tmp_path / "source"))
    config = changed(changed(config, "optim", **STANDING), "train", epochs=1.0, seed=1)
    workdir = epath.Path(tmp_path) / "run"
    train(config, workdir)
    ours, theirs = parameters(workdir)["params"], parameters(source, "best")["params"]
    head = ours.pop("head"), theirs.pop("head")
    assert np.abs(head[0]["kernel"] - head[1]["kernel"]).max() > 0.1
    assert_close(ours, theirs, atol=1e-9)
    assert "32 arrays loaded, 2 new\n  new: head" in capsys.readouterr().err
    report = json.loads((workdir / "pretrained.json").read_text())
    assert report["new"] == ["params/head/bias", "params/head/kernel"]

    shutil.rmtree(tmp_path / "source")
    assert not train(config, workdir)
    assert json.loads((workdir / "pretrained.json").read_text()) == report


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"name": "transunet", "options": tiny_networks.TRANSUNET},
            "network of that run is 'unet', of this one 'transunet'",
        ),
        (
            {"options": {"widths": (4, 16)}},
            r"does not fit.*'widths': .4, 8\D.*'widths': .4, 16\D.*another shape",
        ),
        ({"pretrained": "raw"}, "raw holds no run"),
    ],
)
def test_what_cannot_be_started_from_is_refused(earlier, tmp_path, model, message):
    config, source = earlier
    write_pictures(tmp_path / "raw", 1)
    model = {"pretrained": str(source), "options": {}} | model
    model["pretrained"] = str(tmp_path / model["pretrained"])  # an absolute path stays
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        train(changed(config, "model", **model), epath.Path(tmp_path) / "run")
    assert not (tmp_path / "run").exists()


def test_more_epochs_of_a_constant_rate_go_on(earlier, tmp_path):
    config = changed(earlier[0], "optim", name="sgd", learning_rate=0.05, poly_power=0.0)
    longer = changed(config, "train", epochs=5.0)
    for workdir, configs in (("longer", (config, longer)), ("at once", (longer,))):
        for of in configs:
            assert train(of, epath.Path(tmp_path) / workdir)
    found = [[line["loss"] for line in lines(tmp_path / name)] for name in ("longer", "at once")]
    assert len(found[0]) == 5
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
    (change,) = json.loads((tmp_path / "longer" / "changes.json").read_text())["changes"]
    assert change == {"step": 3, "train.epochs": [3.0, 5.0]}
    with pytest.raises(ConfigError, match=r"epochs: 5\.0 there, 3\.0 now"):
        train(config, epath.Path(tmp_path) / "longer")


def test_more_epochs_of_a_rate_that_came_down_need_a_restart(earlier, tmp_path):
    config, source = earlier
    shutil.copytree(source, tmp_path / "run")
    workdir = epath.Path(tmp_path) / "run"
    longer = changed(config, "train", epochs=6.0)
    with pytest.raises(ConfigError, match=r"(?s)epochs: 3\.0 there, 6\.0 now.*restarts='\(3,\)'"):
        train(longer, workdir)
    with pytest.raises(ConfigError, match=r"restarts"):
        train(changed(longer, "optim", restarts=(2,)), workdir)
    longer = changed(longer, "optim", restarts=(3,))
    assert train(longer, workdir)
    assert read_config(workdir).optim.restarts == (3,)
    rates = [line["learning_rate"] for line in lines(workdir)]
    assert len(rates) == 6
    np.testing.assert_allclose(rates[3:], rates[:3], rtol=1e-6)
    assert rates[2] < rates[1]
    (change,) = json.loads((workdir / "changes.json").read_text())["changes"]
    assert change == {"step": 3, "train.epochs": [3.0, 6.0], "optim.restarts": [[], [3]]}
    assert not train(longer, workdir)
    with pytest.raises(ConfigError, match="fewer before the last restart"):
        train(changed(longer, "train", epochs=3.0), epath.Path(tmp_path) / "other")


def test_a_run_in_steps_is_as_long_whatever_the_number_of_pictures(earlier, tmp_path, capsys):
    config = changed(earlier[0], "train", epochs=0.0, steps=4)
    config = changed(config, "optim", name="sgd", poly_power=0.0)
    workdir = epath.Path(tmp_path) / "run"
    assert train(config, workdir)
    assert "4 steps of 8 examples: 4 times through 8\n" in capsys.readouterr().err
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert train(changed(config, "train", steps=11), workdir)
    assert [line["step"] for line in lines(workdir, "validation")] == [1, 2, 3, 4, 6, 8, 10, 11]


def test_the_time_that_is_left_is_measured_on_the_first_steps():
    times = iter([100.0, *(100.0 + 2.0 * step for step in range(1, 20))])
    pace = Pace(first_step=50, total_steps=162, clock=lambda: next(times))
    said = {step: pace.after(step) for step in range(51, 72)}
    (step,) = (step for step, text in said.items() if text)
    assert step == 62
    assert said[step] == "about 3 minutes for the other 100 steps, at 2 s each"
    slow = iter([0.0, 30.0])
    pace = Pace(first_step=0, total_steps=1003, clock=lambda: next(slow))
    assert [pace.after(step) for step in (1, 2, 3)][-1].startswith("about 8.3 hours")
    assert duration(40) == "40 seconds"


def test_a_run_decides_what_comes_after_the_network_when_it_is_asked_to(earlier, tmp_path):
    config, source = earlier
    shutil.copytree(source, tmp_path / "run")
    workdir = epath.Path(tmp_path) / "run"
    folder = prepare_data(config.data)
    assert not decide_if_asked(config, folder, workdir)
    config = changed(config, "train", postprocess="largest_component")
    assert not train(config, workdir)  # it changes nothing of what was trained
    assert decide_if_asked(config, folder, workdir)
    assert not decide_if_asked(config, folder, workdir)
    decision = json.loads((workdir / "postprocess.json").read_text())
    trained = restore(workdir)
    assert trained.largest_component == decision["largest_component"]
    assert decision["checkpoint"]["step"] == trained.step
    assert decision["cases"] == 3
    decision["checkpoint"]["step"] -= 1  # as of an earlier best checkpoint
    (workdir / "postprocess.json").write_text(json.dumps(decision))
    assert decide_if_asked(config, folder, workdir)
