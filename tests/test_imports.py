"""The import rule: data flows one way, and each heavy package has one home."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spectral_jax"
FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")])

# data flows down this list: a room imports from its own step no other, and from those above it
ORDER = (
    ("losses", "metrics", "models", "data"),
    ("training",),
    ("inference",),
    ("evaluation",),
)
READERS = ("studies", "reporting")  # of files: they import no other room, and no jax
ROOMS = {*(room for step in ORDER for room in step), *READERS, "configs", "commands"}
MAY_IMPORT = {
    **{
        room: {room, *(above for step in ORDER[:number] for above in step)}
        for number, step in enumerate(ORDER)
        for room in step
    },
    **{room: {room} for room in READERS},
    "configs": {"training", "configs"},
    "commands": ROOMS - {"configs"},
    # modules beside the rooms serve all of them
    "": set(),
    "__main__": {"commands"},
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
            room = place.parts[1] if len(place.parts) > 2 else place.stem
            allowed = MAY_IMPORT.get(room, MAY_IMPORT[""])
            assert part not in ROOMS or part in allowed, f"{place} imports {name}"
        if place.parts[0] == "spectral_jax":
            assert not name.startswith(("experiments", "launch")), f"{place} imports {name}"
        top = name.split(".")[0]
        if top in HOMES:
            at_home = any(place.is_relative_to(home) for home in HOMES[top])
            assert at_home, f"{place} imports {name}, whose home is {HOMES[top]}"
    if place.is_relative_to("spectral_jax/losses"):
        packages = {name.split(".")[0] for name in found}
        third_party = packages - LOSSES_MAY_USE
        assert third_party <= {"collections", "functools", "math", "typing"}, third_party


def test_every_folder_has_its_place_in_the_order():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == ROOMS


def test_what_reads_files_needs_no_jax():
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for room in READERS
        for file in (PACKAGE / room).glob("*.py")
    ]
    code = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; "
    code += "print([name for name in ('jax', 'flax', 'orbax', 'tensorflow_datasets') "
    code += "if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
