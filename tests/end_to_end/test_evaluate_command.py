"""`spectral-jax evaluate` on data from elsewhere: what is scored, and under which name."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from spectral_jax.commands.evaluate import name_of_results, parse_on
from spectral_jax.configs import tiny
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write_squares(folder, count, first=0, mode="L"):
    """Bright squares on dark noise, in `images` and `masks` that are not split."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(first, first + count):
        draw = np.random.default_rng(number)
        mask = np.zeros((40, 32), np.uint8)
        top, left = draw.integers(2, 16, 2)
        mask[top : top + 14, left : left + 12] = 255
        image = (mask // 2 + draw.integers(0, 90, mask.shape)).astype(np.uint8)
        name = f"case{number:02d}.png"
        Image.fromarray(image).convert(mode).save(folder / "images" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
    return folder


def run_command(cache, command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{command}", *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """A run on grey pictures, and folders of other hospitals, one with grey saved as RGB."""
    folder = tmp_path_factory.mktemp("hospitals")
    values = tiny.get_config()
    values.data.update({"name": "folder", "root": str(write_squares(folder / "mine", 12))})
    values.data.update({"data_dir": str(folder / "prepared"), "image_size": 32})
    values.train.update({"batch_size": 8, "epochs": 40.0, "validate_every": 40.0})
    train(parse_config(values), epath.Path(folder) / "run")
    write_squares(folder / "north, old/pictures", 5, first=20)
    write_squares(folder / "south/pictures", 6, first=30, mode="RGB")
    return folder


@pytest.mark.slow
def test_other_hospitals_are_scored_whole_and_named_by_their_folders(hospitals, tmp_path):
    workdir = hospitals / "run"
    north, south = hospitals / "north, old/pictures", hospitals / "south/pictures"
    ended = run_command(
        tmp_path, "evaluate", f"--workdir={workdir}",
        f"--on=folder={north},folder={south}", "--on=folder",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "folder-pictures, out of distribution: all 5 cases" in ended.stdout
    assert "folder-south-pictures, out of distribution: all 6 cases" in ended.stdout
    assert "\nfolder: test split of 2 cases" in ended.stdout
    assert all(len(line) <= 100 for line in ended.stdout.splitlines() if "report:" not in line)
    results = {
        file.stem: json.loads(file.read_text()) for file in (workdir / "evaluation").glob("*.json")
    }
    assert results.keys() == {"folder-test", "folder-pictures-all", "folder-south-pictures-all"}
    scores = results["folder-south-pictures-all"]["cases"]
    assert sorted(row["case"] for row in scores) == [f"case{number}" for number in range(30, 36)]
    names = json.loads((workdir / "elsewhere.json").read_text())
    assert names == {"folder-pictures": str(north), "folder-south-pictures": str(south)}

    page = (workdir / "report.html").read_text()
    places = [page.index(f'<section id="{name}">') for name in results]
    assert places[list(results).index("folder-test")] == min(places)
    own = page[min(places) : page.index("<section", min(places) + 1)]
    assert "out of distribution" not in own
    assert page.count('<span class="quiet">out of distribution</span>') == 2

    # `predict` sees the same in the very same files
    ended = run_command(
        tmp_path, "predict", f"--workdir={workdir}", f"--input={south / 'images'}",
        f"--output={tmp_path / 'masks'}",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for row in scores:
        name = f"{row['case']}.png"
        pixels = int(np.count_nonzero(Image.open(tmp_path / "masks" / name)))
        assert f"\n{row['case']}: foreground {pixels} px" in "\n" + ended.stdout
        found = np.asarray(Image.open(tmp_path / "masks" / name)) > 0
        truth = np.asarray(Image.open(south / "masks" / name)) > 0
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) == row["dice"]
    assert np.mean([row["dice"] for row in scores]) > 0.5  # of more than zeros


@pytest.mark.slow
def test_the_own_data_elsewhere_are_still_the_own(hospitals, tmp_path):
    copy = write_squares(tmp_path / "copy", 12)
    ended = run_command(
        tmp_path, "evaluate", f"--workdir={hospitals / 'run'}", f"--on=folder={copy}"
    )
    assert ended.returncode == 0, ended.stderr
    assert "\nfolder: test split of 2 cases" in ended.stdout


def test_names_and_folders_with_commas_between(tmp_path):
    (tmp_path / "a, b").mkdir()
    (tmp_path / "c").mkdir()
    text = f"acdc,folder={tmp_path}/a, b,folder={tmp_path}/c,glas"
    assert list(parse_on([text, "ph2"])) == [
        ("acdc", ""),
        ("folder", f"{tmp_path}/a, b"),
        ("folder", f"{tmp_path}/c"),
        ("glas", ""),
        ("ph2", ""),
    ]


def test_results_are_never_called_alike(tmp_path):
    def name(own, other, root):
        return name_of_results(epath.Path(tmp_path), own, other, root)

    assert name("kvasir_seg", "cvc_clinicdb", "") == "cvc_clinicdb"
    assert name("kvasir_seg", "cvc_clinicdb", "/one/set") == "cvc_clinicdb"
    assert name("kvasir_seg", "cvc_clinicdb", "/two/set") == "cvc_clinicdb-set"
    assert name("kvasir_seg", "cvc_clinicdb", "/three/set") == "cvc_clinicdb-three-set"
    assert name("kvasir_seg", "cvc_clinicdb", "/one/set") == "cvc_clinicdb"
    assert name("kvasir_seg", "folder", "/one/set") == "folder-set"
    assert name("folder", "folder", "/two/set") == "folder-two-set"
    assert name("folder", "folder", "/one/set") == "folder-set"
    shenzhen = "montgomery_shenzhen"
    assert name(shenzhen, shenzhen, "/one/set") == f"{shenzhen}-montgomery"
