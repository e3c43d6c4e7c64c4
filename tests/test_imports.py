"""The import rule: data flows one way, and each heavy package has one home."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spectral_jax"
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

MAY_IMPORT = {
    "losses": {"losses"},
    "metrics": {"metrics"},
    "models": {"models"},
    "data": {"data"},
    "training": {"losses", "metrics", "models", "data", "training"},
    "evaluation": {"losses", "metrics", "models", "data", "training", "evaluation"},
    "studies": {"studies"},
    "reporting": {"reporting"},
    "configs": {"training", "configs"},
    "commands": {
        *("losses", "metrics", "models", "data", "training", "evaluation", "studies"),
        *("reporting", "commands"),
    },
}
HOMES = {
    "absl": ["spectral_jax/commands", "experiments/benchmarks"],
    "orbax": ["spectral_jax/training/checkpoint.py"],
    "grain": ["spectral_jax/data/pipeline.py"],
    "tensorflow_datasets": ["spectral_jax/data/datasets", "spectral_jax/data/sources.py"],
    "matplotlib": ["spectral_jax/reporting"],
    "torch": ["experiments/benchmarks", "tests/parity"],
    "tensorflow": [],
}
LOSSES_MAY_USE = {"jax", "jaxtyping", "numpy", "optax", "spectral_jax"}


def imports(file: pathlib.Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_rule(file):
    place = file.relative_to(ROOT)
    found = imports(file)
    for name in found:
        if name.startswith("spectral_jax.") and place.parts[0] == "spectral_jax":
            part = name.split(".")[1]
            if len(place.parts) > 2 and part in MAY_IMPORT:
                assert part in MAY_IMPORT[place.parts[1]], f"{place} imports {name}"
        if place.parts[0] == "spectral_jax":
            assert not name.startswith(("experiments", "launch")), f"{place} imports {name}"
        top = name.split(".")[0]
        if top in HOMES:
            allowed = any(place.is_relative_to(home) for home in HOMES[top])
            assert allowed, f"{place} imports {name}, whose home is {HOMES[top]}"
    if place.is_relative_to("spectral_jax/losses"):
        packages = {name.split(".")[0] for name in found}
        third_party = packages - LOSSES_MAY_USE
        assert third_party <= {"collections", "functools", "math", "typing"}, third_party
    if place.is_relative_to("spectral_jax/reporting"):
        assert not {name for name in found if name.split(".")[0] == "jax"}
