"""The package as users install it: a wheel, in an environment and a folder away from the clone."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata

import pytest
from PIL import Image

from spectral_jax import allocator

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMANDS = (
    *("prepare", "train", "crossvalidate", "evaluate", "measure", "predict", "report", "export"),
    "study",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if int(metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("this setuptools is too old to build a wheel: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # what is built leaves files behind
    shutil.copytree(ROOT / "spectral_jax", source / "spectral_jax")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--quiet", f"--wheel-dir={folder}", source], check=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_one_package_with_all_its_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"spectral_jax"}
    for file in (ROOT / "spectral_jax").rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            assert str(file.relative_to(ROOT)) in names


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of a new environment, in a folder that is somebody's git repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--quiet", wheel], check=True)
    site = environment / pathlib.Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # what the package depends on is taken from this environment
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    git = ["git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    commit = [*git, "commit", "--quiet", "--allow-empty", "--message=theirs"]
    subprocess.run(commit, cwd=folder, check=True)
    variables = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LD_PRELOAD", "PYTHONPATH", "XLA_FLAGS")
    }
    variables["XDG_CACHE_HOME"] = str(folder / "cache")

    def run(program, *arguments, cwd=folder, **more):
        return subprocess.run(
            [environment / "bin" / program, *map(str, arguments)],
            cwd=cwd,
            env=variables | {key: str(value) for key, value in more.items()},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_the_package_is_the_installed_one(installed):
    ended = installed("python", "-c", "import spectral_jax; print(spectral_jax.__file__)")
    assert "elsewhere" in ended.stdout, ended.stderr
    assert "No module named 'experiments'" in installed("python", "-c", "import experiments").stderr


def test_the_command_lists_its_commands(installed):
    ended = installed("spectral-jax")
    assert ended.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in ended.stdout
    ended = installed("spectral-jax", "trian")
    assert ended.returncode == 2
    assert "no command 'trian'; did you mean train?" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "predict"])
def test_help(installed, command):
    ended = installed("spectral-jax", command, "--help")
    assert f"spectral-jax {command} --" in ended.stdout  # an example
    required, optional = ended.stdout.split("\nOptions:\n")
    assert "--workdir" in required
    assert "--checkpoint" in optional or "--config" in optional


def test_a_configuration_that_is_not_there(installed):
    ended = installed("spectral-jax", "train", "--config=quikstart", "--workdir=run")
    assert ended.returncode == 2
    assert "did you mean quickstart?" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_training_by_a_configuration_s_name(installed, mni152, data_dir, tmp_path):
    workdir = tmp_path / "run"
    ended = installed(
        "spectral-jax", "train", "--config=tiny", f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}", "--config.data.image_size=32",
        "--config.train.epochs=1.0",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (workdir / "report.html").is_file()
    versions = json.loads((workdir / "versions.json").read_text())
    # of the package, not of the repository that it was started in
    assert versions["revision"].startswith("installed files sha256:")
    if sys.platform == "linux" and allocator._library():
        assert versions["allocator"] == "mimalloc"


@pytest.mark.slow
def test_the_first_minute(installed, tmp_path):
    ended = installed(
        "spectral-jax", "predict", "--workdir=example", "--input=example",
        f"--output={tmp_path}", "--overlays",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for name in ("axial_112", "axial_120"):
        assert re.search(rf"^{name}: grey matter [\d,]+ px, white matter [\d,]+ px$", ended.stdout,
                         re.MULTILINE), ended.stdout  # fmt: skip
        assert max(Image.open(tmp_path / f"{name}_overlay.png").size) == 1024
    assert ended.stderr == ""
