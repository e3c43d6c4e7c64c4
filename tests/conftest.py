"""Settings of every test: CPU, eight virtual devices, shared fixtures."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import numpy as np
import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real samples; the test is skipped where there is none."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real samples are not part of the repository: no folder {SHARED / 'data'}")
    return SHARED / "data"


@pytest.fixture
def strict_types():
    """Makes JAX refuse implicit promotion, as a user's own program may."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
