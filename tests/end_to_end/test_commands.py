"""The commands as a user types them, in processes of their own."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from spectral_jax import allocator

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "experiments/configs/tiny.py"


@pytest.fixture(scope="module")
def run_command(mni152, data_dir, tmp_path_factory):
    """Runs `python -m experiments.COMMAND` to its end, or starts it."""
    cache = tmp_path_factory.mktemp("cache")
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "XLA_FLAGS": ""}
    environment.pop("LD_PRELOAD", None)  # commands choose their allocator themselves

    def run(command, *arguments, wait=True):
        process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.{command}", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors

    return run


@pytest.fixture(scope="module")
def tiny_flags(data_dir):
    return (f"--config={TINY}", f"--config.data.data_dir={data_dir}")


@pytest.fixture(scope="module")
def finished(run_command, tiny_flags, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    flags = (*tiny_flags, "--config.train.save_every_steps=2", f"--workdir={workdir}")
    code, output, errors = run_command("train", *flags)
    assert code == 0, errors
    return workdir, flags, output


def arrays(workdir):
    """Every array of the newest checkpoint, read without the package."""
    import orbax.checkpoint as ocp

    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(workdir / "checkpoints" / str(steps[-1]) / "default")
    import jax

    return steps[-1], jax.tree.leaves_with_path(state)


@pytest.mark.slow
def test_training_makes_scores_and_a_report(finished):
    workdir, _, output = finished
    result = json.loads((workdir / "evaluation" / "mni152-test.json").read_text())
    assert result["dataset"] == "mni152"
    assert result["split"] == "test"
    assert result["classes"] == ["background", "grey matter", "white matter"]
    assert len(result["cases"]) == 20 * 2
    assert {"case", "class", "dice", "iou", "hd95"} <= result["cases"][0].keys()
    assert result["summary"]["dice"]["count"] == 40
    means = [
        np.mean([c["dice"] for c in result["cases"] if c["class"] == name])
        for name in result["classes"][1:]
    ]
    assert result["summary"]["dice"]["mean"] == pytest.approx(np.mean(means))
    assert "grey matter" in output
    page = (workdir / "report.html").read_text()
    assert "white matter" in page
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["allocator"] == ("mimalloc" if allocator.environment() else "system")
    assert re.search(r'(src|href)="https?:', page) is None
    assert (workdir / "versions.json").exists()


@pytest.mark.slow
def test_a_finished_run_says_so_and_changes_nothing(finished, run_command):
    workdir, flags, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    code, output, _ = run_command("train", *flags)
    assert code == 0
    assert "is finished, nothing to do" in output
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bits(finished, run_command, tmp_path):
    whole, flags, _ = finished
    flags = (*flags[:-1], f"--workdir={tmp_path / 'killed'}")
    for kill_after in (2, 8):
        process = run_command("train", *flags, wait=False)
        while process.poll() is None and not any(
            path.name.isdigit() and int(path.name) >= kill_after
            for path in (tmp_path / "killed").glob("checkpoints/*")
        ):
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, _, errors = run_command("train", *flags)
    assert code == 0, errors
    assert "resuming at step" in errors
    (step, ours), (last_step, theirs) = arrays(tmp_path / "killed"), arrays(whole)
    assert step == last_step
    for (path, a), (other, b) in zip(ours, theirs, strict=True):
        assert path == other
        np.testing.assert_array_equal(a, b, err_msg=str(path))
    scores = [
        json.loads((workdir / "evaluation" / "mni152-test.json").read_text())["cases"]
        for workdir in (whole, tmp_path / "killed")
    ]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_evaluating_again_gives_the_same_scores(finished, run_command):
    workdir, _, _ = finished
    file = workdir / "evaluation" / "mni152-test.json"
    before = json.loads(file.read_text())
    code, output, errors = run_command("evaluate", f"--workdir={workdir}")
    assert code == 0, errors
    assert "white matter" in output
    after = json.loads(file.read_text())
    assert before | {"wall_seconds": 0} == after | {"wall_seconds": 0}


@pytest.mark.slow
def test_measurements_are_written_and_said(finished, run_command):
    workdir, _, _ = finished
    names = ("robustness", "calibration", "explanations", "interactions", "analysis")
    flags = ("--max_cases=1", "--feature=decoder0", "--method=layer_cam")
    code, output, errors = run_command(
        "measure", f"--workdir={workdir}", f"--what={','.join(names)}", *flags
    )
    assert code == 0, errors
    for name, line in zip(names, output.splitlines(), strict=True):
        said, _, file = line.partition("; ")
        assert said.startswith(f"{name}: ")
        assert re.search(r"\d", said)
        assert json.loads(pathlib.Path(file).read_text())["checkpoint"]["name"] == "best"
    explained = json.loads((workdir / "explanation" / "mni152-test.json").read_text())
    assert (explained["feature"], explained["method"]) == ("decoder0", "layer_cam")
    assert len({row["case"] for row in explained["cases"]}) == 1
    analysed = json.loads((workdir / "analysis" / "mni152-test.json").read_text())
    assert analysed["distance_from_training"]["reference"] == "mni152-train"


@pytest.mark.slow
def test_one_trains_in_a_folder_and_ctrl_c_saves(run_command, tiny_flags, tmp_path):
    flags = (*tiny_flags, "--config.train.epochs=500.0", f"--workdir={tmp_path / 'run'}")
    process = run_command("train", *flags, wait=False)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)

    code, _, errors = run_command("train", *flags)
    assert code == 2
    assert re.fullmatch(
        rf"LockedError: {tmp_path}/run: process {process.pid} on \S+ \(.*\) writes there; .*\n",
        errors,
    ), errors

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    found = re.fullmatch(
        r"Ctrl-C: saved at step (\d+) of 4250; run the same command again to resume", last
    )
    assert found, errors
    assert (tmp_path / "run" / "checkpoints" / found[1]).is_dir()
    assert not (tmp_path / "run" / ".lock").exists()


BUSY = """
import jax, jax.numpy as jnp
from spectral_jax.commands import flags

def main():
    print("busy", flush=True)
    endless = jax.jit(lambda: jax.lax.while_loop(lambda x: x >= 0, lambda x: x * 0.5, 1.0))
    endless().block_until_ready()

flags.run(main)
"""


def test_the_second_ctrl_c_ends_compiled_code_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"busy\n"
    time.sleep(1)  # to be in the loop
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_pipe_that_is_called_like_a_picture_is_refused(run_command, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
        os.mkfifo(tmp_path / "raw" / kind / "a.png")
    code, _, errors = run_command(
        "prepare",
        "--dataset=folder",
        f"--raw_dir={tmp_path / 'raw'}",
        f"--data_dir={tmp_path / 'prepared'}",
        "--option=resplit=false",
    )
    assert code == 2
    assert "no images" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "prepared").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("train", ["--config.model.pretrained=nowhere.npz"], "nowhere.npz"),
        ("train", ["--config.optim.learnin_rate=1"], "did you mean config.optim.learning_rate"),
        ("train", ["--config.optin.learning_rate=1"], "Did you mean .optim."),
        ("train", ["--config.optim.name=adam"], "did you mean 'adamw'"),
        ("train", ["--config.optim.learning_rate=fast"], "could not convert string to float"),
        ("train", ["--config.data.name=folder"], "--config.data.root"),
        ("train", ["surplus"], "unexpected argument 'surplus'"),
        ("evaluate", [], "holds no run"),
        ("measure", ["--what=calibration"], "holds no run"),
        ("measure", ["--what=robustness,fog"], "--what=fog: choose from robustness, calibration"),
        ("report", [], "not a run.s folder"),
    ],
)
def test_mistakes_are_one_line(run_command, tiny_flags, tmp_path, command, flags, message):
    flags = [*(tiny_flags if command == "train" else ()), *flags]
    code, output, errors = run_command(command, f"--workdir={tmp_path / 'run'}", *flags)
    assert code != 0
    assert "Traceback" not in errors
    assert re.search(message, output + errors), errors
    assert not (tmp_path / "run").exists()


def test_a_plan_needs_no_folder_no_data_and_no_batch_that_fits(run_command, tmp_path):
    file = tmp_path / "plan.json"
    code, output, errors = run_command(
        "train", "--dry_run", "--mesh=data:6,fsdp:2", f"--config={TINY}", f"--plan={file}"
    )
    assert code == 0, errors
    assert "batch_size=8 cannot be shared by 12 parts: planned with 12" in output
    assert "12 devices, unet, 3 classes, 1 channels, 12 examples a step" in output
    plan = json.loads(file.read_text())
    assert plan["devices"] == 12
    assert sum(plan["collectives"]["all-reduce"]) >= 4 * plan["parameters"]


def test_mistakes_in_a_plan_are_named(run_command):
    for flag, message in (
        ("--topology=v5e", "expected one of v4, v5e"),
        ("--mesh=data", "expected a form like data:64,fsdp:4"),
    ):
        code, _, errors = run_command("train", "--dry_run", flag, f"--config={TINY}")
        assert code == 2
        assert message in errors
    code, _, errors = run_command("train", f"--config={TINY}")
    assert code != 0
    assert "--workdir must have a value" in errors
