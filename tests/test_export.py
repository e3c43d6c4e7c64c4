"""An exported network gives the same probabilities in a process that has jax alone."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_networks

from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.inference.export import (
    export_stablehlo,
    largest_difference,
    model_card,
    run_stablehlo,
    write_bundle,
)
from spectral_jax.inference.predictor import apply_network
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.build import make_model
from spectral_jax.training.config import parse_config

TOLERANCE = 1e-5  # of probabilities; other fusions round otherwise
NETWORKS = {"unet": tiny_networks.UNET, "transunet": tiny_networks.TRANSUNET}

# reads the bundle as a stranger does
STRANGER = """
import sys
import jax
import numpy as np
with open(sys.argv[1] + "/model.jax", "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
images = np.load(sys.argv[2])
for count in (len(images), 1):
    np.save(f"{sys.argv[1]}/out{count}.npy", network.call(images[:count]))
assert not [name for name in sys.modules if name.split(".")[0] in ("spectral_jax", "flax")]
"""


def probabilities_of(network, images):
    apply = jax.jit(functools.partial(apply_network, network.model, network.activation))
    return apply(network.variables, images)


def trained(name, size, channels=3):
    config = parse_config(
        {"data": {"image_size": size}, "model": {"name": name, name: NETWORKS[name]}}
    )
    info = DatasetInfo(
        name="kvasir_seg",
        modality="colonoscopy",
        classes=("background", "polyp"),
        colors=("#000000", "#E69F00"),
        channels=channels,
        intensity="identity",
        licence="research and education",
    )
    model = make_model(config, Labels(1))
    images = np.zeros((1, size, size, channels), np.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    return TrainedModel(config, info, model, variables, step=7)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_process_without_this_package_gives_the_same(name, rng, tmp_path):
    network = trained(name, 32)
    folder = tmp_path / "bundle"
    facts = write_bundle(network, tmp_path / "run", folder, platforms=("cpu", "cuda", "tpu"))
    assert 0 <= facts["largest_difference"] < TOLERANCE
    images = rng.random((3, 32, 32, 3)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(folder), str(tmp_path / "images.npy")],
        check=True,
        timeout=120,
    )
    expected = jax.jit(functools.partial(apply_network, network.model, "softmax"))(
        network.variables, images
    )
    assert np.ptp(expected) > 10 * TOLERANCE  # the network says something
    for count in (3, 1):
        ours = np.load(folder / f"out{count}.npy")
        np.testing.assert_allclose(ours, expected[:count], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_same_in_onnxruntime(name, rng, tmp_path):
    reason = "ONNX needs a converter: see spectral-jax export --help"
    pytest.importorskip("jax2onnx", reason=reason)
    network = trained(name, 32)
    write_bundle(network, tmp_path / "run", tmp_path, onnx=True)
    images = rng.random((3, 32, 32, 3)).astype(np.float32)
    expected = jax.jit(functools.partial(apply_network, network.model, "softmax"))(
        network.variables, images
    )
    assert np.ptp(expected) > 10 * TOLERANCE
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "model.onnx")
    for count in (3, 1):
        (ours,) = session.run(None, {session.get_inputs()[0].name: images[:count]})
        np.testing.assert_allclose(ours, expected[:count], atol=TOLERANCE)
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        check=True,
        cwd=tmp_path,
        timeout=120,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.stderr == ""  # onnxruntime warns of shapes that it infers otherwise


def test_another_network_is_found_out():
    network = trained("unet", 32)
    changed = jax.tree.map(lambda array: array + 0.1, network.variables)
    program = export_stablehlo(dataclasses.replace(network, variables=changed), ("cpu",))
    assert largest_difference(network, functools.partial(run_stablehlo, program)) > 100 * TOLERANCE


def test_the_bundle_says_how_to_use_it(tmp_path):
    network = trained("unet", 32)
    evaluation = tmp_path / "run/evaluation"
    evaluation.mkdir(parents=True)
    metric = {"mean": 0.875, "count": 12}
    undefined = {"mean": None, "count": 0}
    scores = {"dice": metric, "hd95": undefined}
    for step in (7, 9):
        result = {
            "dataset": "kvasir_seg",
            "split": "test",
            "distance_unit": "px",
            "checkpoint": {"name": "best", "step": step},
            "summary": scores,
            "by_class": {"polyp": scores},
        }
        (evaluation / f"kvasir_seg-{step}.json").write_text(json.dumps(result))
    write_bundle(network, tmp_path / "run", tmp_path / "out", platforms=("cpu",))
    facts = json.loads((tmp_path / "out/model.json").read_text())
    assert facts["classes"] == ["background", "polyp"]
    assert facts["input"]["shape"] == ["batch", 32, 32, 3]
    assert facts["input"]["intensity"]["rule"] == "identity"
    assert facts["data"]["licence"] == "research and education"
    assert facts["platforms"] == ["cpu"]
    assert len(facts["scores"]) == 1  # of this step alone
    card = (tmp_path / "out/README.md").read_text()
    assert card == model_card(facts)
    assert "| kvasir_seg | test | polyp | 0.8750 (12) | - px |" in card
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "model.jax",
        "model.json",
    ]
    # the lines of the card do what they say
    code = card.split("```python\n")[1].split("```")[0]
    subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, cwd=tmp_path / "out", timeout=120
    )


def test_unknown_platforms_are_refused():
    with pytest.raises(ValueError, match="platform 'gpu'"):
        export_stablehlo(trained("unet", 32), ("gpu",))
