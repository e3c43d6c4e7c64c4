"""A run's folder on gs://, on a server that speaks the protocol of Google Cloud Storage."""

import json

import pytest
from etils import epath

from experiments.configs import tiny
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.reporting import write_report
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.logging import FILE, RunLog
from spectral_jax.training.run import read_config, start_run


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
    start_run(config, workdir, data)
    assert read_config(workdir).train == config.train
    start_run(config, workdir, data)  # the same command again
    with pytest.raises(ConfigError, match="gs://bucket/runs/tiny belongs to a run with another"):
        start_run(parse_config({"train": {"seed": 1}}), workdir, data)

    with RunLog(workdir, 0, 10) as log:
        for step in (1, 2, 3):
            log.write("train", step, {"loss": 1 / step})
        log.copy_to_store()
    with RunLog(workdir, 2, 10) as log:  # killed, and gone on from the checkpoint of step 2
        log.write("train", 3, {"loss": 0.25})
    lines = [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert len(list((workdir / "tensorboard").iterdir())) == 2

    page = write_report(workdir)
    assert str(page) == "gs://bucket/runs/tiny/report.html"
    assert "<svg" in page.read_text()
    assert not any(path.name.startswith("gs:") for path in epath.Path().iterdir())
