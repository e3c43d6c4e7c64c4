"""One writer a folder: between processes, after a kill, and where there are no locks."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from spectral_jax import lock
from spectral_jax.files import write_text
from spectral_jax.lock import LockedError, only_writer

HOLD = """
import sys, time
from spectral_jax.files import write_text
from spectral_jax.lock import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold():
    """Starts another process that holds a folder."""
    running = []

    def start(folder):
        command = [sys.executable, "-c", HOLD, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_a_second_writer_is_refused_and_told_who_is_there(hold, tmp_path):
    process = hold(tmp_path / "run")
    message = rf"run: process {process.pid} on {socket.gethostname()} .* writes there"
    with pytest.raises(LockedError, match=message), only_writer(tmp_path / "run"):
        pass
    with pytest.raises(LockedError), only_writer(tmp_path / "x" / ".." / "run"):
        pass  # the same folder by another name


def test_the_lock_ends_with_its_process_however_that_ends(hold, tmp_path):
    process = hold(tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with only_writer(tmp_path / "run"):
        pass


def test_waiting_goes_on_when_the_other_has_ended(hold, tmp_path, caplog):
    process = hold(tmp_path / "run")
    threading.Timer(0.3, process.kill).start()
    with only_writer(tmp_path / "run", wait=True):
        assert process.poll() is not None or process.wait(5) is not None
    assert f"waiting: {tmp_path / 'run'}: process {process.pid}" in caplog.text


def test_the_holder_may_ask_again_another_thread_may_not(tmp_path):
    refused = []

    def other():
        try:
            with only_writer(tmp_path / "run"):
                pass
        except LockedError as error:
            refused.append(error)

    with only_writer(tmp_path / "run"), only_writer(tmp_path / "run"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_nothing_stays_behind(tmp_path):
    with pytest.raises(RuntimeError), only_writer(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path / "a"):
        (tmp_path / "a" / "result").touch()
    assert os.listdir(tmp_path / "a") == ["result"]


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, such as some network ones, and a short lease."""

    def flock(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.6)


def write_holder(folder, **changes):
    folder.mkdir(exist_ok=True)
    holder = {"host": "elsewhere", "process": 7, "command": "train", "since": ""}
    write_text(folder / lock.FILE, json.dumps(holder | changes))


def test_without_locks_a_name_that_is_renewed_keeps_others_out(no_locks, tmp_path):
    ended = threading.Event()

    def renew():
        while not ended.wait(0.1):
            write_holder(tmp_path / "run", renewed=time.time())

    write_holder(tmp_path / "run")
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.raises(LockedError, match="process 7 on elsewhere"),
            only_writer(tmp_path / "run"),
        ):
            pass
    finally:
        ended.set()
        thread.join()


def test_without_locks_a_name_that_nobody_renews_is_replaced(no_locks, tmp_path):
    write_holder(tmp_path / "run")
    start = time.monotonic()
    with only_writer(tmp_path / "run"):
        assert time.monotonic() - start > lock.LEASE_SECONDS
        first = json.loads((tmp_path / "run" / lock.FILE).read_text())
        assert first["process"] == os.getpid()
        time.sleep(lock.LEASE_SECONDS)
        assert json.loads((tmp_path / "run" / lock.FILE).read_text()) != first  # renewed
    assert os.listdir(tmp_path / "run") == []


def test_without_locks_the_name_of_a_dead_process_here_counts_for_nothing(no_locks, tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    write_holder(tmp_path / "run", host=socket.gethostname(), process=process.pid)
    start = time.monotonic()
    with only_writer(epath.Path(tmp_path) / "run"):
        assert time.monotonic() - start < lock.LEASE_SECONDS


def test_without_locks_one_of_several_goes_on(no_locks, tmp_path, monkeypatch):
    """All see that nobody is there, and write their names at once."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 4.5)
    together = threading.Barrier(4)
    look = lock._wait_for_lease

    def look_together(*args):
        look(*args)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.5)

    def write_apart(path, text):  # as processes do, whose temporary files have their numbers
        temporary = path.with_name(f"{threading.get_ident()}")
        temporary.write_text(text)
        temporary.replace(path)

    monkeypatch.setattr(lock, "_wait_for_lease", look_together)
    monkeypatch.setattr(lock, "write_text", write_apart)
    inside, refused = [], []

    def begin():
        try:
            with lock._lease(str(tmp_path / "run"), wait=False):
                inside.append(1)
                time.sleep(3)
        except LockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 3)


def test_without_locks_a_holder_that_was_away_says_so(no_locks, tmp_path, caplog):
    with only_writer(tmp_path / "run"):
        write_holder(tmp_path / "run", token="another")
        while "as well as this one; stop one" not in caplog.text:
            time.sleep(0.05)
    assert json.loads((tmp_path / "run" / lock.FILE).read_text())["token"] == "another"


def test_any_folder_name(tmp_path):
    for name in ("run[1]", "a\nb", "\N{SKULL}", "back\\slash", os.fsdecode(b"\xff")):
        with only_writer(pathlib.Path(tmp_path) / name):
            assert (tmp_path / name / lock.FILE).exists()
