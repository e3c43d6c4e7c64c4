"""Two real processes on one machine: dying, stopping, not finding each other."""

import signal
import subprocess
import sys
import time

import pytest
from kill_and_resume import ROOT, TINY, finish, kill_and_resume, start


@pytest.fixture
def data_flag(mni152, data_dir):
    return f"--config.data.data_dir={data_dir}"


def start_and_wait(workdir, data_flag):
    """Two processes of a run that has written its first checkpoint."""
    flags = (*TINY, "--config.train.epochs=500.0", data_flag, f"--workdir={workdir}")
    running = start(flags, processes=2)
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


@pytest.mark.slow
def test_a_process_notices_the_death_of_the_other(data_flag, tmp_path):
    running = start_and_wait(tmp_path / "run", data_flag)
    running[1].kill()
    code, output = finish(running, timeout=100)[0]
    assert code not in (0, 143)
    assert "lost touch with another process" in output or "another task" in output


@pytest.mark.slow
def test_killed_and_started_again_two_processes_end_with_the_same_bits(data_flag, tmp_path):
    kill_and_resume(tmp_path, kills=2, processes=2, seed=1, flags=(data_flag,))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator_address=localhost:1", "--process_count=2", "--process_index=1"),
         "ConnectionError: no coordinator at localhost:1 after 1 s"),
        (("--process_count=2",), "expected all three"),
    ],
)  # fmt: skip
def test_what_keeps_processes_apart_is_named(tmp_path, flags, message):
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"]
    ended = subprocess.run(
        [*command, "--join_seconds=1", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
