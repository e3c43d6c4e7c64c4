"""The same run on one device, on four and on two processes; and a run taken from these to one."""

import json
import shutil

import numpy as np
import pytest
from kill_and_resume import TINY, checkpoints, finish, start

STEPS = 50
LAYOUTS = ((1, 1), (1, 4), (2, 2))  # processes, devices of each
FLAGS = (
    *TINY,
    "--config.train.epochs=5.88",  # 50 batches of 8 out of 68 slices
    "--config.train.log_every_steps=1",
    "--config.train.save_every_steps=20",
    "--config.train.validate_every=3.0",
)


@pytest.fixture(scope="module")
def runs(mni152, data_dir, tmp_path_factory):
    """Finished runs, by layout; and the flag that says where the data are."""
    data_flag = f"--config.data.data_dir={data_dir}"
    folders = {layout: tmp_path_factory.mktemp("runs") / "run" for layout in LAYOUTS}
    for layout, workdir in folders.items():
        ended = finish(start((*FLAGS, data_flag, f"--workdir={workdir}"), *layout), timeout=400)
        assert all(code == 0 for code, _ in ended), ended
    return folders, data_flag


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def scores(workdir):
    result = json.loads((workdir / "evaluation" / "mni152-test.json").read_text())
    return result | {"wall_seconds": None}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_losses_and_scores_do_not_depend_on_devices_and_processes(runs, layout):
    folders, _ = runs
    ours, theirs = losses(folders[layout]), losses(folders[1, 1])
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert scores(folders[layout]) == scores(folders[1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_a_checkpoint_goes_on_on_one_device(runs, layout, tmp_path):
    folders, data_flag = runs
    workdir = tmp_path / "run"
    shutil.copytree(folders[layout], workdir)
    assert {40, STEPS} <= checkpoints(workdir).keys()
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    shutil.rmtree(workdir / "evaluation")
    ((code, output),) = finish(start((*FLAGS, data_flag, f"--workdir={workdir}")))
    assert code == 0, output
    assert "resuming at step 40 of 50" in output
    ours, theirs = losses(workdir), losses(folders[1, 1])
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    assert scores(workdir) == scores(folders[1, 1])
