"""A trained network as files that need neither this package nor its training code.

A bundle is a folder of `model.jax`, the network with its weights as StableHLO, which `jax.export`
reads again, or of `model.onnx`; `model.json`, what one must know to use it; and `README.md`, a
model card. The network takes float32 images in [0, 1] of the training size, any number of them, and
gives the probabilities of the classes.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

import spectral_jax
from spectral_jax.data.datasets import DATASETS
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.data.volumes import CT_WINDOW, MRI_PERCENTILES
from spectral_jax.files import read_json, written_whole
from spectral_jax.inference.predictor import apply_network
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.build import channel_classes

STABLEHLO_FILE = "model.jax"
ONNX_FILE = "model.onnx"
FACTS_FILE = "model.json"
CARD_FILE = "README.md"
TOLERANCE = 1e-4  # of probabilities; other programs round otherwise
BFLOAT16_TOLERANCE = 2e-2
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

LOADERS = {
    STABLEHLO_FILE: """\
import jax
import numpy as np

with open("model.jax", "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
images = np.zeros({shape}, np.float32)
probabilities = np.asarray(network.call(images))
{decide}""",
    ONNX_FILE: """\
import numpy as np
import onnxruntime

network = onnxruntime.InferenceSession("model.onnx")
images = np.zeros({shape}, np.float32)
(probabilities,) = network.run(None, {{network.get_inputs()[0].name: images}})
{decide}""",
}
MEANINGS = {
    "softmax": "probabilities of the classes, which sum to 1; a pixel is of the most probable one",
    "sigmoid": "probability of each class, which may overlap; a pixel is of those above 0.5",
}
DECISIONS = {
    "softmax": "labels = probabilities.argmax(-1)",
    "sigmoid": "masks = probabilities > 0.5  # of each class",
}
INTENSITIES = {
    "identity": "8-bit values divided by 255, 16-bit ones by 65535",
    "unit": "values that lie between 0 and 1 already",
    "ct_window": f"Hounsfield units {CT_WINDOW[0]:g} ... {CT_WINDOW[1]:g} to 0 ... 1, cut off "
    "beyond",
    "mri_percentile": f"percentiles {MRI_PERCENTILES[0]:g} and {MRI_PERCENTILES[1]:g} of the whole "
    "volume to 0 and 1, cut off beyond",
}


def export_stablehlo(
    trained: TrainedModel, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> bytes:
    """The network with its weights, serialised; `jax.export.deserialize` makes it callable.

    Args:
      trained: the network.
      platforms: on which it is to run, of `PLATFORMS`.

    Returns:
      A program from float32 `[batch, *size, channels]` in [0, 1] to float32 probabilities `[batch,
      *size, classes]`, for any batch.

    Raises:
      ValueError: for an unknown platform.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise ValueError(f"platform {platform!r}: expected some of {', '.join(PLATFORMS)}")
    (batch,) = jax.export.symbolic_shape("batch")
    shape = (batch, *trained.config.data.example_size, trained.data.channels)
    program = jax.jit(
        functools.partial(apply_network, trained.model, trained.activation, trained.variables)
    )
    exported = jax.export.export(program, platforms=platforms)(
        jax.ShapeDtypeStruct(shape, np.float32)
    )
    return bytes(exported.serialize())


def export_onnx(trained: TrainedModel) -> bytes:
    """The network with its weights as an ONNX model, by jax2onnx; images as above.

    Raises:
      ValueError: if the converter is not installed.
    """
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ValueError(
            f"ONNX needs a converter ({error}): pip install onnx onnx-ir onnxruntime "
            "dm-pix equinox && pip install --no-deps jax2onnx"
        ) from None
    network = functools.partial(apply_network, trained.model, trained.activation, trained.variables)
    shape = ("batch", *trained.config.data.example_size, trained.data.channels)
    model = to_onnx(network, [shape])
    # the shapes noted for intermediate tensors are channels last, the tensors are not: onnxruntime
    # infers them, and warns of each that differs
    del model.graph.value_info[:]
    return model.SerializeToString()


def run_stablehlo(program: bytes, images: np.ndarray) -> np.ndarray:
    """Probabilities that an exported program gives."""
    return np.asarray(jax.export.deserialize(bytearray(program)).call(images))


def run_onnx(program: bytes, images: np.ndarray) -> np.ndarray:
    """Probabilities that an ONNX model gives, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    (probabilities,) = session.run(None, {name: images})
    return probabilities


def largest_difference(trained: TrainedModel, run: Callable[[np.ndarray], np.ndarray]) -> float:
    """How far probabilities are from the network's, on random images: one, and a batch of three."""
    shape = (3, *trained.config.data.example_size, trained.data.channels)
    images = np.random.default_rng(0).random(shape, np.float32)
    network = jax.jit(
        functools.partial(apply_network, trained.model, trained.activation, trained.variables)
    )
    expected = np.asarray(network(images))
    parts = (expected[:1] - run(images[:1]), expected - run(images))
    return max(float(np.abs(part).max()) for part in parts)


def describe_model(trained: TrainedModel, workdir: Any, checkpoint: str) -> dict[str, Any]:
    """What one must know to use an exported network, as JSON holds it.

    Scores are those of `spectral-jax evaluate` that lie in the run's folder for this very step.
    """
    data, config = trained.data, trained.config
    channels = channel_classes(trained.activation, data.classes)
    entry = DATASETS.get(data.name)
    return {
        "model": config.model.name,
        "classes": list(data.classes),
        "colors": list(data.colors),
        "input": {
            "shape": ["batch", *config.data.example_size, data.channels],
            "type": "float32",
            "range": [0, 1],
            "channels": list(data.channel_names),
            "intensity": {"rule": data.intensity, "meaning": _describe_intensity(data)},
            "resize": _describe_size(trained),
        },
        "output": {
            "shape": ["batch", *config.data.example_size, len(channels)],
            "type": "float32",
            "channels": list(channels),
            "activation": trained.activation,
            "meaning": MEANINGS[trained.activation],
        },
        "data": {
            "name": data.name,
            "description": entry.description if entry else "",
            "modality": data.modality,
            "licence": data.licence,
        },
        "checkpoint": {"name": checkpoint, "step": trained.step},
        "members": list(trained.members),
        "largest_component": trained.largest_component,
        "objective": {
            "spatial": config.objective.spatial,
            "spectral": config.objective.spectral,
            "weight": config.objective.weight,
        },
        "scores": _scores(workdir, trained),
        "versions": {
            "spectral_jax": spectral_jax.__version__,
            **{package: metadata.version(package) for package in ("jax", "jaxlib", "flax")},
        },
    }


def _describe_size(trained: TrainedModel) -> str:
    if not trained.config.data.patch_size:
        return "bilinear, averaging where it shrinks, to this size"
    sides = " x ".join(f"{side:g}" for side in trained.data.patch_spacing_mm)
    if not sides:
        return "patches at the resolution of the case"
    return f"patches of the case, resampled to voxels of {sides} mm"


def _describe_intensity(data: DatasetInfo) -> str:
    if isinstance(data.intensity, str):
        return INTENSITIES[data.intensity]
    rules = zip(data.channel_names, data.intensity, strict=True)
    return "; ".join(f"{name}: {INTENSITIES[rule]}" for name, rule in rules)


def _scores(workdir: Any, trained: TrainedModel) -> list[dict[str, Any]]:
    """What evaluations in a folder found of a network's very checkpoints."""
    folder = workdir / "evaluation"
    files = sorted(folder.glob("*.json")) if folder.exists() else []
    results = [read_json(file, "delete it and run spectral-jax evaluate again") for file in files]
    return [
        {key: result[key] for key in ("dataset", "split", "distance_unit", "summary", "by_class")}
        for result in results
        if tuple(np.atleast_1d(result["checkpoint"]["step"])) == trained.steps
        and tuple(result.get("members", ())) == trained.members
    ]


def write_bundle(
    trained: TrainedModel,
    workdir: Any,
    output: pathlib.Path,
    *,
    checkpoint: str = "best",
    onnx: bool = False,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> dict[str, Any]:
    """Writes the bundle, each file as a whole, and returns what its JSON says.

    Args:
      trained: the network.
      workdir: where its scores lie, the run's folder; of several runs that of their evaluation.
      output: the bundle's folder.
      checkpoint: what the checkpoint is called.
      onnx: write ONNX instead of StableHLO.
      platforms: see `export_stablehlo`; the one that this runs on is added, to check the program.

    Raises:
      ValueError: if the program does not give the network's probabilities; nothing is written.
    """
    if onnx:
        file, program, run = ONNX_FILE, export_onnx(trained), run_onnx
        platforms = ()
    else:
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        platforms = list(dict.fromkeys([*platforms, here]))
        file, program, run = STABLEHLO_FILE, export_stablehlo(trained, platforms), run_stablehlo
    difference = largest_difference(trained, functools.partial(run, program))
    tolerance = BFLOAT16_TOLERANCE if trained.config.model.bfloat16 else TOLERANCE
    if not difference <= tolerance:
        raise ValueError(
            f"the exported program's probabilities differ from the network's by {difference:.1e}, "
            f"expected at most {tolerance:g}; nothing is written"
        )
    facts = describe_model(trained, workdir, checkpoint)
    facts |= {"file": file, "platforms": list(platforms), "largest_difference": difference}
    contents = {
        file: program,
        FACTS_FILE: (json.dumps(facts, indent=2) + "\n").encode(),
        CARD_FILE: model_card(facts).encode(),
    }
    for name, content in contents.items():
        with written_whole(output / name) as temporary:
            temporary.write_bytes(content)
    return facts


def model_card(facts: dict[str, Any]) -> str:
    """The same in Markdown, for people."""
    data, given = facts["data"], facts["input"]
    shape = " x ".join(map(str, given["shape"]))
    lines = [
        f"# {facts['model']} for {', '.join(facts['classes'][1:])}",
        "",
        f"Modality: {data['modality']}. Trained on {data['name']}: {data['description']} "
        f"Licence of these data: {data['licence']}. Not a medical device.",
        "",
        "## Use",
        "",
        f"Input: float32 images, {shape}, values 0 to 1: {given['intensity']['meaning']}. "
        f"Size: {given['resize']}. Output, of {', '.join(facts['output']['channels'])}: "
        f"{facts['output']['meaning']}. " + _needs(facts),
        "",
        "```python",
        LOADERS[facts["file"]].format(
            shape=(1, *given["shape"][1:]), decide=DECISIONS[facts["output"]["activation"]]
        ),
        "```",
        "",
        *_after(facts),
        "On random images its probabilities differ from those of the network it was made of by "
        f"{facts['largest_difference']:.1e} at most.",
        "",
        "## Scores",
        "",
    ]
    if facts["scores"]:
        lines += [
            "Means over cases, then over classes; in brackets the number of cases and classes.",
            "",
            "| data | split | class | Dice | HD95 |",
            "|---|---|---|---|---|",
        ]
    else:
        lines += ["None: this checkpoint was not evaluated."]
    for scores in facts["scores"]:
        for name, values in [*scores["by_class"].items(), ("mean", scores["summary"])]:
            dice, distance = (_cell(values[metric]) for metric in ("dice", "hd95"))
            lines.append(
                f"| {scores['dataset']} | {scores['split']} | {name} | {dice} | "
                f"{distance} {scores['distance_unit']} |"
            )
    objective, checkpoint = facts["objective"], facts["checkpoint"]
    lines += [
        "",
        "## Training",
        "",
        f"Loss: {objective['spatial']} + {objective['weight']:g} x {objective['spectral']}; "
        f"checkpoint {checkpoint['name']!r}, step {checkpoint['step']}. "
        + "The probabilities are the mean of {} networks. ".format(len(facts["members"]))
        * bool(facts["members"])
        + f"Made by spectral_jax {facts['versions']['spectral_jax']}.",
        "",
        "## Limits",
        "",
        "It knows only images like those it was trained on; other scanners, protocols and patients "
        "may give much lower scores than those above. A person has to check what it finds.",
    ]
    return "\n".join(lines) + "\n"


def _after(facts: dict[str, Any]) -> list[str]:
    """What the package does after the network, and this file does not."""
    if not facts["largest_component"]:
        return []
    return [
        "This is the network alone. The scores below are of masks of which only the largest "
        f"connected component is kept, of {', '.join(facts['largest_component'])}; do the same.",
        "",
    ]


def _needs(facts: dict[str, Any]) -> str:
    if facts["file"] == ONNX_FILE:
        return "It needs onnxruntime and numpy."
    return (
        f"It needs numpy, flatbuffers and jax {facts['versions']['jax']}, or a version up to half "
        f"a year younger, and runs on {', '.join(facts['platforms'])}."
    )


def _cell(value: dict[str, Any]) -> str:
    return "-" if value["mean"] is None else f"{value['mean']:.4f} ({value['count']})"
