"""Annotations are true: what callers give and get is what they name, as beartype checks it."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CALLS = """
import jax, jax.numpy as jnp, numpy as np, pytest
from jaxtyping import TypeCheckError, install_import_hook

checked = ("spectral_jax.losses", "spectral_jax.metrics", "spectral_jax.data.augment")
beartype = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # as mypy reads
with install_import_hook(checked, beartype):
    from spectral_jax import losses, metrics
    from spectral_jax.data.augment import augment, to_unit_range
    from spectral_jax.losses import harmonized, spatial
    from spectral_jax.metrics import calibration, overlap, ranking, surface

rng = np.random.default_rng(0)
for shape in ((2, 16, 16), (2, 8, 8, 8)):
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    logits = rng.normal(size=(*shape, 3)).astype(np.float32)
    valid = labels < 2
    for module in (np, jnp):  # arrays of either kind
        y, z, counted = (module.asarray(x) for x in (labels, logits, valid))
        for name in harmonized.SPATIAL:
            losses.harmonized_loss(z, y, spatial=name, weight=1, valid=counted)
        for name in [*harmonized.SPECTRAL, None]:
            losses.harmonized_loss(z, y, spectral=name, ignore_label=255)
        p, one_hot = jax.nn.softmax(z), jax.nn.one_hot(y, 3)
        for targets in (one_hot, np.asarray(one_hot).astype(np.uint8), one_hot.astype(int)):
            losses.dice_loss(p, targets, class_weights=(1, 2, 0.5), include_background=False)
        losses.tversky_loss(p, one_hot, pooling="batch")
        losses.cross_entropy_loss(z.astype(jnp.bfloat16), one_hot, class_weights=np.ones(3))
        losses.matthews_loss(p, one_hot)
        losses.pearson_loss(p, one_hot)
        losses.focal_frequency_loss(p, one_hot)
        losses.spectral_correlation(p, one_hot, band=losses.soft_band(3, 1))
        losses.spectral_correlation_loss(p, one_hot, sample_weights=np.ones(2), pooling="batch")
    jax.jit(jax.grad(lambda z: losses.harmonized_loss(z, labels)))(logits)
    masks = jax.nn.one_hot(labels, 3)[..., 1:]
    losses.harmonized_loss(logits[..., 1:], masks, activation="sigmoid")

for shape, spacing in (((12, 14), (1, 2)), ((4, 12, 14), (3.0, 1.0, 2.0)), ((12, 14), None)):
    for dtype in (np.uint8, np.uint16, int):
        truth, found = (rng.integers(0, 3, shape).astype(dtype) for _ in range(2))
        rows = metrics.score_case(found, truth, 3, spacing)
        metrics.score_mask(found == 1, truth == 1, spacing, nsd_tolerance=2)
        overlap.confusion_matrix(found, truth, 3)
        overlap.overlap_counts(found, truth, 3).false_negative
        surface.surface_distances(found == 1, truth == 1, spacing)
        surface.surface_distances(found == 1, truth == 9, spacing)
    metrics.summarise([{"class": "a", **row} for row in rows])
    p = rng.dirichlet(np.ones(3), shape).astype(np.float32)
    sums = calibration.calibration_sums(p, truth, truth > 0)
    sums += calibration.calibration_sums(p, truth)
    calibration.ece(sums.of_class(1)), calibration.nll(sums), calibration.brier(sums)
    calibration.scale_temperature(p, 2)
    counts = ranking.ranking_counts(p[..., 1], truth == 1)
    ranking.recall_at_true_volume(counts)
    ranking.rank_correlation([1, 2, 3], (0.5, 0.1, 0.2))
calibration.dilated_union(np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.int64))

for shape in ((2, 16, 16), (2, 3, 16, 16)):
    images = rng.integers(0, 255, (*shape, 1)).astype(np.uint8)
    for dtype in (np.uint8, np.uint16):
        unit = jax.jit(to_unit_range)(images)
        jax.jit(augment)(jax.random.key(0), unit, jnp.zeros(shape, dtype))

with pytest.raises(TypeCheckError):  # the check is on
    spatial.where_valid(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 5, 4), bool))
with pytest.raises(TypeCheckError):
    overlap.overlap_counts(np.zeros(3), np.zeros(3, int), 2)
print("checked")
"""


def test_annotations_of_losses_metrics_and_augmentation_are_true():
    pytest.importorskip("beartype")
    ended = subprocess.run(
        [sys.executable, "-c", CALLS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "checked\n", ended.stderr
