"""Training step and inference, ours against the same network in PyTorch on the same cores.

python -m experiments.benchmarks.step --out=DIR
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from scipy import ndimage

from experiments.benchmarks import timing
from spectral_jax.data.labels import Labels
from spectral_jax.models import compiler_options
from spectral_jax.training import sharding
from spectral_jax.training.build import build
from spectral_jax.training.config import MeshConfig, default_config, parse_config
from spectral_jax.training.objective import make_objective
from spectral_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, its images, and what is asked of it: PyTorch's time over ours."""

    name: str
    model: str
    options: dict[str, Any]
    size: int
    batch: int
    classes: int = 9
    target_train: str = ""
    target_predict: str = ""


CASES = {
    "quick": Case("UNet 4", "unet", {"widths": (4, 8)}, 32, 2, 3),
    "unet16": Case(
        "UNet 16, 128 px",
        "unet",
        {"widths": (16, 32, 64, 128, 256)},
        128,
        8,
        target_train="at least 0.9",
        target_predict="at least 0.9",
    ),
    "unet64": Case(
        "UNet 64, 224 px",
        "unet",
        {"widths": (64, 128, 256, 512, 1024)},
        224,
        2,
        target_train="at least 1.0",
        target_predict="at least 1.0",
    ),
    "transunet": Case(
        "TransUNet, 224 px",
        "transunet",
        {},
        224,
        2,
        target_train="at least 1.4",
        target_predict="at least 1.5",
    ),
}
NETWORKS = flags.DEFINE_list("networks", ["unet16", "unet64", "transunet"], "Keys of CASES.")


def blobs(batch: int, size: int, classes: int) -> np.ndarray:
    """Label maps of smooth regions in which every class has about the same area."""
    noise = np.random.default_rng(0).normal(size=(batch, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, size / 32, size / 32))
    edges = np.quantile(smooth, np.linspace(0, 1, classes + 1)[1:-1])
    return np.digitize(smooth, edges).astype(np.int32)


def operations_of(lowered: jax.stages.Lowered) -> float:
    """Additions and multiplications of a program, as XLA counts them."""
    cost = lowered.cost_analysis()
    assert cost is not None  # XLA's CPU client tells
    return cost["flops"]


class Ours:
    """The step as `experiments.train` runs it, without augmentation, and the network alone."""

    def __init__(
        self,
        case: Case,
        spectral: str = "none",
        batch: int | None = None,
        accumulate: int = 1,
    ):
        batch = batch or case.batch
        values = default_config()
        values.data.image_size = case.size
        values.model.name = case.model
        values.model[case.model].update(case.options)
        values.objective.spatial = "dice_ce"
        values.objective.spectral = spectral
        values.train.batch_size = batch
        values.train.accumulate = accumulate
        values.augment.flip = values.augment.quarter_turns = False
        for key in ("affine_probability", "contrast", "brightness", "gamma"):
            setattr(values.augment, key, 0.0)
        config = parse_config(values)
        labels = Labels(case.classes - 1)
        mesh = sharding.make_mesh(MeshConfig())
        built = build(config, labels, 1, mesh, total_steps=1000)
        self.state = built.first_state(jax.random.key(0))
        self.images = np.random.default_rng(1).random((batch, case.size, case.size, 1), np.float32)
        self.labels = blobs(batch, case.size, case.classes)
        self.batch = sharding.place_batch({"image": self.images, "label": self.labels}, mesh)
        step = make_train_step(
            built.model, config, 1000, built.layout, make_objective(config, labels)
        )
        lowered = step.lower(self.state, self.batch)
        self.program, self.operations = lowered.compile(), operations_of(lowered)
        self.apply = jax.jit(
            lambda variables, images: built.model.apply(variables, images, train=False),
            compiler_options=compiler_options(),
        )
        inference = self.apply.lower(self.state.variables, self.batch["image"])
        self.inference_operations = operations_of(inference)

    def train(self) -> float:
        """One step; returns its loss."""
        self.state, metrics = self.program(self.state, self.batch)
        return float(jax.block_until_ready(metrics)["loss"])

    def predict(self) -> jax.Array:
        """Logits of the batch."""
        return jax.block_until_ready(self.apply(self.state.variables, self.batch["image"]))


def measure(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        logging.warning("PyTorch is not installed (extra `bench`): our times alone")
    rate = timing.matrix_product_rate(64 if quick else 2048, repetitions)
    yield timing.fact("matrix product", rate / 1e9, "GFLOP/s")
    for name in ("quick",) if quick else NETWORKS.value:
        case = CASES[name]
        ours = Ours(case)
        train: dict[str, Callable[[], Any]] = {"ours": ours.train}
        predict: dict[str, Callable[[], Any]] = {"ours": ours.predict}
        if has_torch:
            from experiments.benchmarks import torch_twins

            for compiled in (False, True):
                twin = torch_twins.Twin(case, ours, compiled=compiled)
                label = "PyTorch compiled" if compiled else "PyTorch eager"
                difference = float(jnp.abs(twin.predict() - ours.predict()).max())
                size = float(jnp.abs(ours.predict()).max())
                if difference > 1e-3 * size:
                    raise AssertionError(f"{label} {case.name}: logits differ by {difference:.3g}")
                yield timing.fact(
                    f"{case.name}, {label}: largest difference of logits",
                    difference,
                    f"of {size:.3g}",
                )
                train[label], predict[label] = twin.train, twin.predict
        few = repetitions if name in ("quick", "unet16") else min(repetitions, 3)
        shape = f"{case.name}, {case.batch} images"
        yield timing.compare(
            f"{shape}: training step",
            train,
            few,
            target=case.target_train,
            bound=ours.operations / rate,
        )
        yield timing.compare(
            f"{shape}: inference",
            predict,
            few,
            target=case.target_predict,
            bound=ours.inference_operations / rate,
        )


if __name__ == "__main__":
    timing.run("step", measure)
