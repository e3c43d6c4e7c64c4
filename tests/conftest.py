"""Settings of every test: CPU, eight virtual devices, shared fixtures."""

import os
import pathlib
import signal

from spectral_jax import allocator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("LD_PRELOAD", None)  # of a worker, see below: commands restart, browsers crash
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # compiles three times faster, and tests compile more than they compute
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)

# a suite started in the background of a shell ignores Ctrl-C, and commands would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import numpy as np
import pytest

from spectral_jax.data.datasets import DATASETS, prepare


def pytest_addoption(parser):
    parser.addoption(
        "--fuzz", type=int, default=60, help="damaged files of each kind that test_fuzz.py tries"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes():
    # workers are about to start; they live through many tests, so what one took goes back
    os.environ["MIMALLOC_PURGE_DELAY"] = "1000"
    os.environ.update(allocator.environment())


def pytest_configure(config):
    # tests compile many programs twice
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real samples; the test is skipped where there is none."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real samples are not part of the repository: no folder {SHARED / 'data'}")
    return SHARED / "data"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """Where prepared data sets are kept during the tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def mni152(data_dir) -> pathlib.Path:
    """The prepared template."""
    pytest.importorskip("nilearn", reason="the embedded template comes with nilearn: [demo]")
    return prepare(DATASETS["mni152"], root=None, data_dir=data_dir)


@pytest.fixture
def strict_types():
    """Makes JAX refuse implicit promotion, as a user's own program may."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
