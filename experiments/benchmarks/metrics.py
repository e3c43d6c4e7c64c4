"""Dice, HD95 and ASSD of volumes, ours against medpy and MONAI, where they give equal values.

python -m experiments.benchmarks.metrics --out=DIR
"""

import importlib.util

import numpy as np
from scipy import ndimage

from experiments.benchmarks import timing
from spectral_jax.metrics.overlap import dice, overlap_counts
from spectral_jax.metrics.surface import assd, hd95, hd95_transunet, surface_distances

SPACING = (3.0, 1.0, 1.0)  # mm, of a CT with thick slices


def organs(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth object and one with another boundary: masks of a prediction and of the truth."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in grid))
    masks = []
    for _ in range(2):
        bumps = ndimage.gaussian_filter(rng.normal(size=shape), [size / 16 for size in shape])
        masks.append(radius + 0.1 * bumps / bumps.std() < 0.5)
    return masks[0], masks[1]


def measure(quick: bool, repetitions: int) -> list[timing.Result]:
    shape = (6, 24, 24) if quick else (64, 224, 224)
    prediction, truth = organs(shape)
    what = " x ".join(map(str, shape))

    def ours():
        distances = surface_distances(prediction, truth, SPACING)
        return hd95(distances), assd(distances)

    def medpys_hd95():
        return hd95_transunet(surface_distances(prediction, truth, SPACING))

    def ours_dice():
        return dice(overlap_counts(prediction.astype(np.uint8), truth.astype(np.uint8), 2))[1]

    distances, pooled, overlap = {"ours": ours}, {"ours": medpys_hd95}, {"ours": ours_dice}
    facts = []
    if importlib.util.find_spec("medpy") is not None:
        from medpy.metric import binary

        pooled["medpy"] = lambda: binary.hd95(prediction, truth, SPACING)
        overlap["medpy"] = lambda: binary.dc(prediction, truth)
        distances["medpy"] = lambda: (
            binary.hd95(prediction, truth, SPACING),
            binary.assd(prediction, truth, SPACING),
        )
        np.testing.assert_allclose(medpys_hd95(), pooled["medpy"](), rtol=1e-9)
        np.testing.assert_allclose(ours_dice(), overlap["medpy"](), rtol=1e-9)
        np.testing.assert_allclose(ours()[1], distances["medpy"]()[1], rtol=1e-9)
        facts.append(timing.fact("HD95 of pooled distances, equal to medpy's", medpys_hd95(), "mm"))
    if importlib.util.find_spec("monai") is not None:
        import torch
        from monai.metrics import compute_hausdorff_distance

        one, other = (torch.from_numpy(x)[None, None].float() for x in (prediction, truth))

        def monais():
            return compute_hausdorff_distance(
                one, other, include_background=True, percentile=95, spacing=SPACING
            ).item()

        np.testing.assert_allclose(ours()[0], monais(), rtol=1e-4)
        facts.append(timing.fact("HD95, equal to MONAI's", ours()[0], "mm"))
        distances["MONAI, HD95 alone"] = monais
    return [
        *facts,
        timing.compare(f"HD95, {what}", pooled, repetitions, target="at least 5"),
        timing.compare(f"HD95 and ASSD, {what}", distances, repetitions),
        timing.compare(f"Dice, {what}", overlap, repetitions),
    ]


if __name__ == "__main__":
    timing.run("metrics", measure)
