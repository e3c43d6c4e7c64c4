"""Real processes: dying, stopping, not finding each other, not being let write."""

import importlib.util
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest
from kill_and_resume import ROOT, TINY, checkpoints, finish, kill_and_resume, start


@pytest.fixture
def data_flag(mni152, data_dir):
    return f"--config.data.data_dir={data_dir}"


def start_and_wait(workdir, *flags, processes=2):
    """A long run that has written its first checkpoint."""
    flags = (*TINY, "--config.train.epochs=500.0", *flags, f"--workdir={workdir}")
    running = start(flags, processes)
    while not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
        assert all(process.poll() is None for process in running), finish(running)
        time.sleep(0.05)
    return running


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_step(data_flag, tmp_path):
    running = start_and_wait(tmp_path / "run", data_flag)
    running[1].send_signal(signal.SIGTERM)
    (code, output), (other_code, other_output) = finish(running, timeout=60)
    assert (code, other_code) == (143, 143)
    assert output.splitlines()[-1] == other_output.splitlines()[-1]
    step = output.splitlines()[-1].split("saved at step ")[1].split()[0]
    assert (tmp_path / "run" / "checkpoints" / step).is_dir()


@pytest.fixture(scope="module")
def short_run(mni152, data_dir, tmp_path_factory):
    """A run of two processes that has ended."""
    workdir = tmp_path_factory.mktemp("short") / "run"
    data_flag = f"--config.data.data_dir={data_dir}"
    flags = (*TINY, "--config.train.epochs=0.1", data_flag, f"--workdir={workdir}")
    assert [code for code, _ in finish(start(flags, processes=2))] == [0, 0]
    return workdir


def stop_one(flags, command):
    """Sends SIGTERM to one of two processes while they work; both have to end for it."""
    running = start(flags, processes=2, command=command)
    while not all(catches_sigterm(process) for process in running):
        assert all(process.poll() is None for process in running), finish(running)
        time.sleep(0.01)
    running[1].send_signal(signal.SIGTERM)
    ended = finish(running, timeout=60)
    assert [code for code, _ in ended] == [143, 143], ended
    last = [output.splitlines()[-1] for _, output in ended]
    assert "SIGTERM: stopped at case" in last[0]
    assert last[0] == last[1]


@pytest.mark.slow
def test_sigterm_to_one_stops_the_evaluation_of_both(short_run):
    workdir = f"--workdir={short_run}"
    scores = short_run / "evaluation" / "mni152-test.json"
    before = json.loads(scores.read_text())
    scores.unlink()
    stop_one((workdir,), "evaluate")
    assert not scores.exists()
    assert [code for code, _ in finish(start((workdir,), command="evaluate"))] == [0]
    assert json.loads(scores.read_text())["cases"] == before["cases"]


@pytest.mark.slow
def test_measurements_of_two_processes_equal_those_of_one(short_run):
    kinds = ("robustness", "calibration", "analysis")
    flags = (f"--workdir={short_run}", f"--what={','.join(kinds)}", "--max_cases=3")
    stop_one((f"--workdir={short_run}", "--what=robustness"), "measure")
    assert not (short_run / "robustness" / "mni152-test.json").exists()

    def measured(processes):
        ended = finish(start(flags, processes, command="measure"))
        assert [code for code, _ in ended] == [0] * processes, ended
        files = [short_run / kind / "mni152-test.json" for kind in kinds]
        return [json.loads(file.read_text()) | {"wall_seconds": 0} for file in files]

    assert measured(2) == measured(1)


def catches_sigterm(process):
    """Whether it is in the part of a command that answers SIGTERM by itself; Linux tells."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def let_files_grow_no_more(workdir, process):
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))


def forbid_writing(workdir, process):
    (workdir / "checkpoints").chmod(0o555)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [(let_files_grow_no_more, "File too large"), (forbid_writing, "Permission denied")],
)
def test_a_checkpoint_that_cannot_be_written_is_named(data_flag, tmp_path, fault, reason):
    workdir = tmp_path / "run"
    # nothing else is written meanwhile
    quiet = ("--config.train.log_every_steps=100000", "--config.train.validate_every=400.0")
    (running,) = start_and_wait(workdir, data_flag, *quiet, processes=1)
    fault(workdir, running)
    ((code, output),) = finish([running], timeout=60)
    (workdir / "checkpoints").chmod(0o755)
    assert code == 2, output
    message = output.splitlines()[-1]
    assert "CheckpointError" in message
    assert "a checkpoint could not be written" in message
    assert reason in message
    kept = int(message.split("Last good checkpoint: step ")[1].split(".")[0])
    assert max(checkpoints(workdir)) == kept  # read from the files


@pytest.mark.slow
def test_a_process_notices_the_death_of_the_other(data_flag, tmp_path):
    running = start_and_wait(tmp_path / "run", data_flag)
    running[1].kill()
    code, output = finish(running, timeout=100)[0]
    assert code not in (0, 143)
    assert "lost contact with another process" in output or "another task" in output


@pytest.mark.slow
def test_killed_and_started_again_two_processes_end_with_the_same_bits(data_flag, tmp_path):
    kill_and_resume(tmp_path, kills=2, processes=2, seed=1, flags=(data_flag,))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator_address=localhost:1", "--process_count=2", "--process_index=1"),
         "ConnectionError: no coordinator at localhost:1 after 1 s"),
        (("--process_count=2",), "expected all three"),
        (("--workdir=memory://run",), "ConfigError: --workdir=memory://run: expected a folder, or"),
        (("--workdir=s3://bucket/run",), "pip install s3fs"),
    ],
)  # fmt: skip
def test_what_keeps_a_run_from_starting_is_named(tmp_path, flags, message):
    if "s3" in message and importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, so nothing is missing")
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(
        [*command, "--join_seconds=1", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
