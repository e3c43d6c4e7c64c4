"""A run's folder on gs://, on a server that speaks the protocol of Google Cloud Storage."""

import json
import threading
import time

import numpy as np
import pytest
from etils import epath

from spectral_jax import lock
from spectral_jax.configs import tiny
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.files import read_json, write_arrays, write_json, written_whole
from spectral_jax.reporting import write_report
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.logging import FILE, RunLog
from spectral_jax.training.run import check_run, claim_run, read_config


@pytest.fixture
def workdir(monkeypatch):
    """Of a run in an empty bucket."""
    pytest.importorskip("gcsfs", reason="what reads gs:// comes with the extra [gcs]")
    server = pytest.importorskip("gcp_storage_emulator.server").create_server(
        "localhost", 0, in_memory=True, default_bucket="bucket"
    )
    server.start()
    port = server._api._httpd.socket.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    yield epath.Path("gs://bucket/runs/tiny")
    server.stop()


def test_a_folder_on_object_storage_is_as_one_here(workdir):
    config = parse_config(tiny.get_config())
    data = DatasetInfo("mni152", "T1 MRI", ("background", "grey"), ("#000000", "#808080"), 1)
    check_run(config, workdir, data, last_step=None)
    claim_run(config, workdir, data, first_step=0)
    assert read_config(workdir).train == config.train
    check_run(config, workdir, data, last_step=1)  # the same command again
    with pytest.raises(ConfigError, match="gs://bucket/runs/tiny belongs to a run with another"):
        check_run(parse_config({"train": {"seed": 1}}), workdir, data, last_step=1)

    with RunLog(workdir, 0, 10) as log:
        log.open()
        for step in (1, 2, 3):
            log.write("train", step, {"loss": 1 / step})
        log.copy_to_store()
    with RunLog(workdir, 2, 10) as log:  # killed, and resumed from the checkpoint of step 2
        log.open()
        log.write("train", 3, {"loss": 0.25})
    lines = [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(list((workdir / "tensorboard").iterdir())) == 2

    page = write_report(workdir)
    assert str(page) == "gs://bucket/runs/tiny/report.html"
    assert "<svg" in page.read_text()
    assert not any(path.name.startswith("gs:") for path in epath.Path().iterdir())


def test_one_writes_to_a_folder_on_object_storage(workdir, monkeypatch):
    """As far as a store allows: whoever renews a name keeps others out."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.9)
    ourselves = lock._ourselves()
    elsewhere = ourselves | {"host": "elsewhere"}
    monkeypatch.setattr(lock, "_ourselves", lambda: elsewhere)  # as on another machine
    with lock.only_writer(workdir):
        assert json.loads((workdir / lock.FILE).read_text())["host"] == "elsewhere"
        monkeypatch.setattr(lock, "_ourselves", lambda: ourselves)
        monkeypatch.setattr(lock, "_held", {})
        with pytest.raises(lock.LockedError, match="on elsewhere"), lock.only_writer(workdir):
            pass
    assert not (workdir / lock.FILE).exists()
    (workdir / lock.FILE).write_text(json.dumps(elsewhere))  # of one that was killed
    with lock.only_writer(workdir):
        pass


def test_of_several_that_begin_at_once_one_goes_on(workdir, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_SECONDS", 9)

    def ourselves():  # a machine a thread: a name of this very process would count for nothing
        return {"host": "elsewhere", "process": threading.get_ident(), "command": "train"}

    monkeypatch.setattr(lock, "_ourselves", ourselves)
    inside, most, refused = [], [], []

    def begin():
        try:
            with lock._lease(str(workdir), wait=False):
                inside.append(1)
                most.append(len(inside))
                time.sleep(6)
                inside.pop()
        except lock.LockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(refused)) == ([1], 3)


def test_files_appear_whole_on_object_storage(workdir):
    write_json(workdir / "a" / "b.json", {"x": 1})
    write_arrays(workdir / "a" / "c.npz", {"x": np.arange(3)})

    def fail():
        with written_whole(workdir / "a" / "b.json") as temporary:
            temporary.write_text("half")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert read_json(workdir / "a" / "b.json", "") == {"x": 1}
    assert sorted(path.name for path in (workdir / "a").iterdir()) == ["b.json", "c.npz"]
