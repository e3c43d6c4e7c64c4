"""A split whose cases a test makes up."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from spectral_jax.data.sources import DatasetInfo, Volume


def make_split(info: DatasetInfo, volumes: Mapping[str, Volume], name: str = "test") -> Any:
    """What measurements ask of a `Split`; each case is a group of its own."""
    return SimpleNamespace(
        info=info,
        name=name,
        cases=list(volumes),
        groups={case: case for case in volumes},
        volume=volumes.__getitem__,
    )
