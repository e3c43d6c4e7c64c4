"""Every command in README and docs, typed as it stands there, where only the wheel is installed.

Training is made small by options at the end. A command that is not run is listed with the reason.
"""

import re
import shlex

import numpy as np
import pytest
from PIL import Image
from test_installed import ROOT, installed, wheel  # noqa: F401 - fixtures

PAGES = (
    *("README.md", "CONTRIBUTING.md", "launch/README.md", "experiments/DATASETS.md"),
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
)
SMALL = (
    *("--config.data.image_size=32", "--config.model.unet.widths=(4,8)"),
    *("--config.train.epochs=0.0", "--config.train.steps=6", "--config.train.batch_size=4"),
)
# beginnings of commands, and why they are not run
NOT_RUN = {
    "pip install": "the test installs the wheel, and has no network",
    "pytest": "this is it",
    "ruff check": "of a clone; CI runs it",
    ".ci/lowest": "of a clone; installs other versions from the network",
    "PYTHON=python3.13 .ci/lowest": "as above",
    "python -m experiments": "of a clone; test_commands.py runs it",
    "--config.": "an option alone",
    "spectral-jax prepare --dataset=acdc": "needs the data set; test_real_sets.py prepares it",
    "spectral-jax prepare --dataset=wounds": "test_extending.py runs that page",
    "spectral-jax train --config=folder --config.data.name=wounds": "test_extending.py",
    "spectral-jax study --study=wounds.py": "test_extending.py reads it; test_study.py runs one",
    "spectral-jax study --study=experiments/studies": "of a clone; test_study.py runs one",
    "spectral-jax train ...": "an option alone",
    "spectral-jax train --config=folder --config.data.root=mine --workdir=runs/mine "
    "--config.model.pretrained": "needs two runs; test_start.py has them",
    "spectral-jax train --config=folder --config.data.root=mine --workdir=runs/larger": "takes "
    "hours",
    "spectral-jax crossvalidate": "trains five networks; test_several_runs.py does",
    **{
        f"spectral-jax {command} --workdir=runs/mine/fold0": "as above"
        for command in ("evaluate", "predict", "export")
    },
    "spectral-jax train --config=nnunet": "needs the data set; test_from_nnunet.py trains on it",
    "spectral-jax measure --workdir=RUN": "for any run; test_commands.py measures one",
    "spectral-jax train --config=synapse_transunet": "needs Google's weights; test_pretrained.py "
    "reads files like them",
    "spectral-jax export --workdir=runs/mine --output=exported --format=onnx": "needs the extra "
    "onnx; test_export.py writes ONNX",
    "python -c \"import numpy; print(numpy.load('R50": "needs Google's weights",
    "gcloud ": "needs an account",
    "export ": "sets a variable",
    "launch/": "needs a cluster; test_launch.py runs these scripts against a stand-in",
    "DRY_RUN=1 launch/": "as above",
    "docker ": "needs Docker",
    "cat > Dockerfile": "needs Docker",
}
PROGRAMS = ("spectral-jax",)


def fenced_commands(page):
    """The commands of a page's blocks, each on one line, without comments."""
    found = []
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    ):
        if language not in ("sh", "bash", "") or (not language and not block.startswith(PROGRAMS)):
            continue
        block = re.sub(r"\\\n\s*", "", block)
        block = re.sub(r"(<<'END')\n.*?^END$", r"\1", block, flags=re.MULTILINE | re.DOTALL)
        lines = (re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines())
        found += [line for line in lines if line and not line.startswith("#")]
    return found


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in fenced_commands(page)))


def reason_not_to_run(command):
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


RUN = [command for command in COMMANDS if reason_not_to_run(command) is None]


def test_each_command_is_run_or_has_a_reason():
    assert len(RUN) >= 10
    for command in RUN:  # whatever else there is needs a reason
        assert command.startswith(PROGRAMS), f"{command}: run it in test_walk.py, or say why not"
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in COMMANDS), (
            f"nothing begins with {start}"
        )


def write_pictures(images, masks, names, rng):
    """Bright discs in colour, and their masks."""
    for folder in (images, masks):
        folder.mkdir(parents=True)
    for name in names:
        rows, columns = np.indices((40, 48))
        disc = np.hypot(rows - rng.integers(12, 28), columns - rng.integers(12, 36)) < 9
        picture = 120 * disc[..., None] + rng.integers(0, 90, (40, 48, 3))
        Image.fromarray(picture.astype(np.uint8)).save(images / name, quality=95)
        Image.fromarray((255 * disc).astype(np.uint8)).save(masks / name, quality=95)


def write_files(folder):
    """What the pages speak of."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        place = folder / "mine" / split
        names = [f"{split}{number}.png" for number in range(count)]
        write_pictures(place / "images", place / "masks", names, rng)
    names = [f"{number}.png" for number in range(3)]
    write_pictures(folder / "new_pictures", folder / "unused", names, rng)
    other = folder / "other_hospital"
    write_pictures(other / "images", other / "masks", names, rng)
    kvasir, clinic = folder / "Kvasir-SEG", folder / "CVC-ClinicDB"
    names = [f"polyp{number}.jpg" for number in range(10)]
    write_pictures(kvasir / "images", kvasir / "masks", names, rng)
    names = [f"{number}.tif" for number in (1, 60, 120, 200)]
    write_pictures(clinic / "Original", clinic / "Ground Truth", names, rng)


@pytest.mark.slow
def test_every_command_does_what_its_page_says(installed, mni152, tmp_path):  # noqa: F811
    write_files(tmp_path)
    for command in RUN:
        program, *arguments = shlex.split(command)
        small = SMALL if "train" in arguments else ()
        done = installed(
            program, *arguments, *small, cwd=tmp_path, TFDS_DATA_DIR=tmp_path / "prepared"
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{printed}"
        assert "Traceback" not in printed, f"{command}\n{printed}"
        for line in printed.splitlines():
            assert len(line) <= 100 or "/" in line, line  # a path may be longer
            assert not re.match(r"[IWEF]\d{4} ", line), f"{command}: noise: {line}"
    for file in (
        *("runs/quickstart/report.html", "runs/quickstart/evaluation/mni152-test.json"),
        *("masks/summary.csv", "masks/0_overlay.png", "masks/0.png", "exported/model.jax"),
        *("runs/kvasir/evaluation/kvasir_seg-test.json",),
        *("runs/kvasir/evaluation/cvc_clinicdb-all.json",),
        *("runs/mine/evaluation/folder-other_hospital-all.json",),
    ):
        assert (tmp_path / file).is_file(), file
