"""The examples learn, each in its few lines."""

import pathlib
import re
import runpy

import jax
import pytest

import experiments.examples

FOLDER = pathlib.Path(experiments.examples.__file__).parent
EXAMPLES = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "discs")
)


def run(name: str, capsys) -> str:
    """What the example prints, run as `python FILE` would."""
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_learns(name, capsys):
    if name == "with_equinox":
        pytest.importorskip("equinox", reason="Equinox comes with the extra: [examples]")
    printed = run(name, capsys)
    losses = [float(number) for number in re.findall(r": loss ([\d.]+)", printed)]
    assert len(losses) >= 3
    assert losses[-1] < 0.3 * losses[0]
    if name == "sharded":
        alone = float(re.search(r"on one device ([\d.]+)", printed)[1])
        assert losses[0] == pytest.approx(alone, abs=2e-5)
        assert f"on {jax.device_count()} devices" in printed
        assert jax.device_count() > 1
    else:
        assert float(re.search(r"Dice of new \w+: ([\d.]+)", printed)[1]) > 0.85


@pytest.mark.slow
def test_the_notebook_runs_and_learns(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="notebooks run by the extra: [examples]")
    import nbformat

    notebook = nbformat.read(FOLDER / "loss_and_training.ipynb", as_version=4)
    assert len(notebook.cells) == 10
    assert not any(cell.get("outputs") for cell in notebook.cells)  # small, and no old result
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    printed = "".join(out["text"] for out in outputs if out["output_type"] == "stream")
    assert float(re.search(r"Dice of new pictures: ([\d.]+)", printed)[1]) > 0.85
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3


def test_all_six_are_there_and_short():
    assert len(EXAMPLES) == 6
    for name in EXAMPLES:
        assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 40, name
