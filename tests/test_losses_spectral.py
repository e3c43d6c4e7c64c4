"""The spectral correlation: identities, an independent fft2 reference, numerics, gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spectral_jax.losses import (
    PRESETS,
    focal_frequency_loss,
    pearson_loss,
    power_band,
    rings,
    soft_band,
    spectral_correlation,
    spectral_correlation_loss,
)
from spectral_jax.losses import spectral as module
from spectral_jax.losses.spectral import (
    half_spectrum_by_fft,
    half_spectrum_by_products,
    spectrum_weights,
)

pytestmark = pytest.mark.usefixtures("strict_types")

SHAPES = [(16, 16), (15, 16), (16, 15), (9, 13), (6, 7, 8), (5, 6, 7)]
BANDS = {"full": None, "soft": soft_band(3.0, 0.8), "power": power_band(-0.5), "rings": rings(4)}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def blobs(rng, shape, classes=2, batch=3):
    """Smooth probabilities and one-hot masks, float64 `[batch, *shape, classes]`."""
    noise = rng.standard_normal((2, batch, *shape, classes))
    noise = ndimage.gaussian_filter(noise, (0, 0, *(1.5,) * len(shape), 0))
    logits = 8 * noise / noise.std()
    p = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    m = np.eye(classes)[(logits[1] + 0.5 * logits[0]).argmax(-1)]
    return p, m


def reference(p, m, band=None, spectrum="complex", normalisation="correlation", epsilon=0.0):
    """The definition in plain numpy: full complex transform, one image and class at a time."""
    shape = p.shape[1:-1]
    k = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(x**2 for x in k))
    zero = (0,) * len(shape)
    radius[zero] = 1
    weights = np.ones_like(radius) if band is None else band(radius)
    weights = weights.reshape(-1, *shape).copy()
    weights[(slice(None), *zero)] = 0
    out = np.empty((p.shape[0], p.shape[-1]))
    for b, c in np.ndindex(out.shape):
        f, g = (np.fft.fftn(x[b, ..., c] - x[b, ..., c].mean()) / np.prod(shape) for x in (p, m))
        if spectrum != "complex":
            f, g = (np.sqrt(np.abs(x) ** 2 + 1e-12) for x in (f, g))
        if spectrum == "log_magnitude":
            f, g = (np.log1p(np.prod(shape) * x) for x in (f, g))
        rho = []
        for w in weights:
            a, d = f, g
            if spectrum != "complex":
                a, d = (x - (w * x).sum() / w.sum() for x in (f, g))
            cross = (w * a * d.conj()).sum().real
            powers = [(w * np.abs(x) ** 2).sum() for x in (a, d)]
            if normalisation == "correlation":
                rho.append(cross / np.sqrt((powers[0] + epsilon) * (powers[1] + epsilon)))
            else:
                rho.append((2 * cross + epsilon) / (sum(powers) + epsilon))
        out[b, c] = np.mean(rho)
    return out


# --- identities of the full band (exact, so in float64 to rounding) -------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("band", [None, power_band(0.0)], ids=["parseval", "transform"])
def test_full_band_is_pearson_correlation(x64, rng, shape, band):
    p, m = blobs(rng, shape)
    pearson = [[np.corrcoef(p[b, ..., c].ravel(), m[b, ..., c].ravel())[0, 1] for c in range(2)]
               for b in range(3)]  # fmt: skip
    ours = spectral_correlation(p, m, band=band, epsilon=0.0)
    np.testing.assert_allclose(ours, pearson, atol=1e-12)


def test_full_band_has_the_gradient_of_pearson_correlation(x64, rng):
    p, m = blobs(rng, (9, 12))
    transform = jax.grad(lambda p: spectral_correlation_loss(p, m, band=power_band(0.0)))(p)
    np.testing.assert_allclose(transform, jax.grad(pearson_loss)(p, m), atol=1e-12)
    np.testing.assert_allclose(transform, jax.grad(spectral_correlation_loss)(p, m), atol=1e-12)


def test_full_band_of_hard_masks_is_the_matthews_coefficient(x64, rng):
    p, m = blobs(rng, (15, 16))
    p = np.eye(2)[p.argmax(-1)]
    tp, fp, fn, tn = (
        (x * y).sum((1, 2)) for x, y in ((p, m), (p, 1 - m), (1 - p, m), (1 - p, 1 - m))
    )
    matthews = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    for band in (None, power_band(0.0)):
        ours = spectral_correlation(p, m, band=band, epsilon=0.0)
        np.testing.assert_allclose(ours, matthews, atol=1e-12)


def test_full_band_with_the_mean_kept_is_a_cosine_and_hard_masks_make_it_precision_times_recall(
    x64, rng
):
    p, m = blobs(rng, (15, 16))
    f, g = (np.fft.fft2(x, axes=(1, 2)) for x in (p, m))

    def cosine(x, y):
        return (x * y.conj()).sum((1, 2)).real / np.sqrt(
            (np.abs(x) ** 2).sum((1, 2)) * (np.abs(y) ** 2).sum((1, 2))
        )

    np.testing.assert_allclose(cosine(f, g), cosine(p, m), atol=1e-12)
    hard = np.eye(2)[p.argmax(-1)]
    overlap = (hard * m).sum((1, 2))
    precision, recall = overlap / hard.sum((1, 2)), overlap / m.sum((1, 2))
    np.testing.assert_allclose(
        cosine(np.fft.fft2(hard, axes=(1, 2)), g), np.sqrt(precision * recall), atol=1e-12
    )
    # removing the mean over frequencies deletes one corner pixel, not the mean of the image
    f, g = (x - x.mean((1, 2), keepdims=True) for x in (f, g))
    corner = np.ones((15, 16, 1))
    corner[0, 0] = 0
    np.testing.assert_allclose(cosine(f, g), cosine(p * corner, m * corner), atol=1e-12)


def test_arithmetic_normalisation_with_the_mean_kept_is_squared_dice(x64, rng):
    from spectral_jax.losses import dice_loss

    p, m = blobs(rng, (15, 16), batch=1)
    f, g = (np.fft.fft2(x, axes=(1, 2)) for x in (p, m))
    spectral = 2 * (f * g.conj()).sum((1, 2)).real
    spectral /= (np.abs(f) ** 2).sum((1, 2)) + (np.abs(g) ** 2).sum((1, 2))
    dice = dice_loss(p, m, squared_denominator=True, smooth=0.0)
    np.testing.assert_allclose(1 - spectral.mean(), dice, atol=1e-12)


def test_full_band_between_disjoint_masks_knows_their_areas_only(x64):
    def boxes(distance):
        m = np.zeros((1, 32, 32, 2))
        m[:, 2:8, 2:8, 0] = 1
        m[:, 2:10, 8 + distance : 13 + distance, 1] = 1
        return m[..., :1], m[..., 1:]

    areas = np.array([36, 40]) / 32**2
    expected = -np.sqrt(np.prod(areas) / np.prod(1 - areas))
    for distance in (0, 12):
        ours = spectral_correlation(*boxes(distance), epsilon=0.0)
        np.testing.assert_allclose(ours, [[expected]], atol=1e-12)
    near, far = (
        spectral_correlation(*boxes(distance), band=soft_band(4.0), epsilon=0.0)
        for distance in (0, 12)
    )
    assert abs(float(near[0, 0] - far[0, 0])) > 0.02  # a band does see the layout


# --- the general definition against plain numpy ---------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_fft2_reference(x64, rng, shape):
    p, m = blobs(rng, shape)
    for (_, band), spectrum, normalisation in itertools.product(
        BANDS.items(),
        ["complex", "magnitude", "log_magnitude"],
        ["correlation", "concordance"],
    ):
        options = {"band": band, "spectrum": spectrum, "normalisation": normalisation}
        ours = spectral_correlation(p, m, epsilon=1e-6, **options)
        theirs = reference(p, m, epsilon=1e-6, **options)
        np.testing.assert_allclose(ours, theirs, atol=1e-11, err_msg=str(options))


def test_float32_is_close_to_float64(rng):
    p, m = blobs(rng, (32, 31))
    for preset in PRESETS.values():
        single = spectral_correlation(jnp.float32(p), jnp.float32(m), **preset)
        assert single.dtype == jnp.float32
        with jax.enable_x64(True):
            double = spectral_correlation(p, m, **preset)
            assert double.dtype == jnp.float64
        np.testing.assert_allclose(single, np.asarray(double), atol=2e-6)


def test_the_twin_of_midband_is_lins_concordance_over_pixels(x64, rng):
    """Powers of all samples together: only where the band is full is it a spatial coefficient."""
    p, m = blobs(rng, (12, 11), classes=3)
    x, y = (np.moveaxis(z, -1, 0).reshape(3, 3, -1) for z in (p, m))  # [classes, batch, pixels]
    x, y = (z - z.mean(-1, keepdims=True) for z in (x, y))
    lin = 2 * (x * y).sum((1, 2)) / ((x**2).sum((1, 2)) + (y**2).sum((1, 2)))
    twin = spectral_correlation(p, m, **PRESETS["concordance"], epsilon=0.0)
    np.testing.assert_allclose(twin, lin, atol=1e-12)
    midband = PRESETS["midband"]
    assert {**midband, "band": None} == PRESETS["concordance"]
    loss = spectral_correlation_loss(p, m, **PRESETS["concordance"], epsilon=0.0)
    assert float(loss) == pytest.approx(1 - lin[1:].mean(), abs=1e-12)


def test_pooled_is_pooled_by_hand(x64, rng):
    p, m = blobs(rng, (8, 9))
    powers = []
    for x, y in ((p, m), (p, p), (m, m)):
        x, y = (z - z.mean((1, 2), keepdims=True) for z in (x, y))
        powers.append((x * y).mean((0, 1, 2)))
    ours = spectral_correlation(p, m, pooling="batch", epsilon=0.0)
    assert ours.shape == (2,)
    np.testing.assert_allclose(ours, powers[0] / np.sqrt(powers[1] * powers[2]), atol=1e-12)


# --- properties -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    gain=st.floats(0.1, 0.5),
    spectrum=st.sampled_from(["complex", "magnitude", "log_magnitude"]),
    normalisation=st.sampled_from(["correlation", "concordance"]),
    band=st.sampled_from(list(BANDS)),
)
def test_range_symmetry_and_order(seed, gain, spectrum, normalisation, band):
    rng = np.random.default_rng(seed)
    p, m = (np.float32(x) for x in blobs(rng, (12, 12)))
    options = {"spectrum": spectrum, "normalisation": normalisation, "band": BANDS[band]}
    rho = spectral_correlation(p, m, **options)
    assert np.all(np.abs(rho) <= 1 + 1e-5)
    np.testing.assert_allclose(spectral_correlation(m, p, **options), rho, atol=1e-5)
    order = rng.permutation(3)
    np.testing.assert_allclose(
        spectral_correlation(p[order], m[order], **options), rho[order], atol=1e-5
    )
    np.testing.assert_allclose(
        spectral_correlation(np.moveaxis(p, 1, 2), np.moveaxis(m, 1, 2), **options), rho, atol=1e-4
    )
    if spectrum == "complex":
        scaled = spectral_correlation(p, gain * p + 0.2, **options, epsilon=1e-10)
        expected = 1 if normalisation == "correlation" else 2 * gain / (1 + gain**2)
        np.testing.assert_allclose(scaled, expected, atol=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_complement_shift_and_unique_maximum(x64, preset):
    options = {**PRESETS[preset], "epsilon": 0.0}
    m = np.zeros((1, 64, 64, 1))
    m[:, 20:44, 24:40] = 1

    def rho(p):
        return float(spectral_correlation(p, m, **options).squeeze())

    assert rho(m) == pytest.approx(1, abs=1e-12)
    assert rho(1 - m) == pytest.approx(-1, abs=1e-12)
    shifted = [rho(np.roll(m, shift, axis=2)) for shift in (0, 1, 2, 4, 8, 16)]
    assert all(a > b + 0.01 for a, b in itertools.pairwise(shifted))
    faint = rho(0.3 * m + 0.2)
    assert faint == pytest.approx(1 if preset == "paper" else 0.6 / 1.09, abs=1e-12)


def test_magnitudes_are_blind_to_shift_and_complement(rng):
    _, m = blobs(rng, (16, 16))
    m = np.float32(m)
    for spectrum in ("magnitude", "log_magnitude"):
        for p in (np.roll(m, 5, axis=1), 1 - m):
            np.testing.assert_allclose(spectral_correlation(p, m, spectrum=spectrum), 1, atol=2e-3)


def test_midband_alone_finds_the_mask_from_flat_logits(rng):
    m = np.zeros((1, 32, 32, 2), np.float32)
    m[:, 8:20, 10:24, 1] = 1
    m[..., 0] = 1 - m[..., 1]

    @jax.jit
    def loss(logits, m):
        return spectral_correlation_loss(jax.nn.softmax(logits), m, **PRESETS["midband"])

    gradient = jax.jit(jax.grad(loss))
    logits = jnp.asarray(0.05 * rng.standard_normal(m.shape), jnp.float32)
    for _ in range(150):
        direction = gradient(logits, m)
        logits -= 0.2 * direction / jnp.abs(direction).max()
    p = jax.nn.softmax(logits)[..., 1]
    assert float(p[0, 12, 12]) > 0.9
    assert float(p[0, 2, 2]) < 0.1


# --- numerics -------------------------------------------------------------------------------------

EDGES = {
    "empty": (0.3, 0.0),
    "full": (0.3, 1.0),
    "both empty": (0.0, 0.0),
    "empty prediction": (0.0, None),
    "flat prediction": (0.5, None),
    "full prediction": (1.0, None),
    "exact": (None, None),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("spectrum", ["complex", "magnitude", "log_magnitude"])
def test_edge_cases_have_finite_values_and_gradients(dtype, spectrum):
    mask = np.zeros((2, 9, 8, 2))
    mask[:, 2:6, 2:5, 1] = 1
    for normalisation, pooling in itertools.product(
        ["correlation", "concordance"], ["sample", "batch"]
    ):
        loss_and_gradient = jax.jit(
            jax.value_and_grad(
                lambda p, m, n=normalisation, o=pooling: spectral_correlation_loss(
                    p, m, spectrum=spectrum, normalisation=n, pooling=o, band=soft_band(3.0)
                )
            )
        )
        for name, (p, m) in EDGES.items():
            p, m = (mask if x is None else np.full_like(mask, x) for x in (p, m))
            value, gradient = loss_and_gradient(jnp.asarray(p, dtype), jnp.asarray(m, dtype))
            assert value.dtype == jnp.float32, name
            assert gradient.dtype == dtype
            assert np.isfinite(value), name
            assert bool(jnp.all(jnp.isfinite(gradient))), name
            if "exact" in name and normalisation == "concordance":
                assert abs(float(value)) < 1e-5
            if name in ("empty", "full", "both empty"):
                assert float(value) == 0, name
                assert not np.any(gradient), name


def test_false_positives_on_an_empty_slice_are_punished_when_pooled():
    m = np.zeros((2, 16, 16, 2), np.float32)
    m[0, 4:10, 4:10, 1] = 1
    m[..., 0] = 1 - m[..., 1]
    p = 0.8 * m + 0.1
    p[1, 5:9, 5:9] = [0.4, 0.6]
    for pooling, punished in (("sample", False), ("batch", True)):
        gradient = jax.grad(
            lambda p, o=pooling: spectral_correlation_loss(
                p, m, pooling=o, normalisation="concordance", band=soft_band(3.0)
            )
        )(p)
        assert bool(np.any(gradient[1])) == punished


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_equals_finite_differences(x64, rng, preset):
    p, m = blobs(rng, (6, 7), batch=2)
    direction = rng.standard_normal(p.shape)
    loss = jax.jit(lambda p: spectral_correlation_loss(p, m, **PRESETS[preset]))
    step = 1e-5
    numeric = (loss(p + step * direction) - loss(p - step * direction)) / (2 * step)
    exact = jnp.vdot(jax.grad(loss)(p), direction)
    np.testing.assert_allclose(exact, numeric, rtol=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_the_batch_with_zero_weight_changes_nothing(rng, preset):
    p, m = (np.float32(x) for x in blobs(rng, (8, 8)))
    padded = [np.concatenate([x, x[::-1]]) for x in (p, m)]
    weights = jnp.array([1.0, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(
        spectral_correlation_loss(*padded, **PRESETS[preset], sample_weights=weights),
        spectral_correlation_loss(p, m, **PRESETS[preset]),
        atol=1e-6,
    )


def test_background_of_two_classes_says_nothing_new(rng):
    p, m = (np.float32(x) for x in blobs(rng, (8, 8)))
    rho = spectral_correlation(p, m)
    np.testing.assert_allclose(rho[:, 0], rho[:, 1], atol=1e-5)


def test_bands_by_hand():
    radius = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(power_band(2.0)(radius), [1 / 16, 1 / 4, 1])
    np.testing.assert_allclose(power_band(-1.0)(radius), [4, 2, 1])
    # a factor of e is one width
    soft = np.exp([-0.5, 0, -0.5, -2])
    np.testing.assert_allclose(soft_band(3.0, 1.0)(3 * np.exp([-1, 0, 1, 2])), soft)
    np.testing.assert_allclose(soft_band(3.0, 2.0)(3 * np.exp([-2, 0, 2, 4])), soft)


def test_half_spectrum_counts_every_frequency_once():
    for shape in SHAPES:
        assert spectrum_weights(shape, None).sum() == np.prod(shape) - 1


# --- errors and the second control ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spectrum": "phase"}, "choose one of"),
        ({"normalisation": "none"}, "choose one of"),
        ({"pooling": "mean"}, "choose one of"),
        ({"band": lambda r: (r < 3).astype(float)}, "free frequency"),
        ({"band": rings(200)}, "too many"),
        ({"band": lambda r: r[:2]}, "half spectrum"),
    ],
)
def test_wrong_options_are_named(options, message):
    x = jnp.ones((1, 8, 8, 2))
    for function in (spectral_correlation, spectral_correlation_loss):
        with pytest.raises(ValueError, match=message):
            function(x, x, **options)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="one-hot"):
        spectral_correlation(jnp.ones((1, 8, 8, 2)), jnp.ones((1, 8, 8)))
    with pytest.raises(ValueError, match=r"got shape \(8, 8, 2\)"):
        spectral_correlation(jnp.ones((8, 8, 2)), jnp.ones((8, 8, 2)))
    with pytest.raises(ValueError, match="positive numbers"):
        soft_band(0.0)
    with pytest.raises(ValueError, match="at least 1"):
        rings(0)


def test_focal_frequency_loss(x64, rng):
    p, m = blobs(rng, (8, 9))
    np.testing.assert_allclose(  # Parseval
        focal_frequency_loss(p, m, alpha=0.0), ((p - m)[..., 1:] ** 2).mean(), atol=1e-12
    )
    error = np.abs(np.fft.fft2((p - m)[..., 1:], axes=(1, 2), norm="ortho"))
    weights = error / error.max((1, 2), keepdims=True)
    np.testing.assert_allclose(focal_frequency_loss(p, m), (weights * error**2).mean(), atol=1e-12)
    gradient = jax.grad(lambda p: focal_frequency_loss(p, m))
    assert np.isfinite(gradient(p)).all()
    assert not np.any(gradient(m))


@pytest.mark.parametrize("shape", [*SHAPES, (224, 224), (1, 8)])
def test_products_with_waves_are_the_fourier_transform(x64, rng, shape):
    x = jnp.asarray(rng.standard_normal((2, *shape)))
    dimensions = len(shape)
    by_fft = half_spectrum_by_fft(x, dimensions=dimensions)
    by_products = half_spectrum_by_products(x, dimensions=dimensions)
    for ours, theirs in zip(by_products, by_fft, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)
    for ours, theirs in zip(
        half_spectrum_by_products(x.astype(jnp.float32), dimensions=dimensions), by_fft, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def three_part_tensordot(a, b, axes, precision):
    """What a TPU's matrix unit makes of a float32 product of this precision."""

    def parts(x):
        high = x.astype(jnp.bfloat16).astype(jnp.float32)
        return high, (x - high).astype(jnp.bfloat16).astype(jnp.float32)

    assert precision == "high"
    (a_high, a_low), (b_high, b_low) = parts(a), parts(b)
    pairs = ((a_high, b_high), (a_high, b_low), (a_low, b_high))
    return sum(TENSORDOT(x, y, axes) for x, y in pairs)


TENSORDOT = jnp.tensordot


@pytest.mark.parametrize("shape", [(224, 224), (63, 64), (20, 24, 28)])
def test_the_rounding_of_a_tpu_stays_below_1e_5(monkeypatch, rng, shape):
    x = jnp.asarray(ndimage.gaussian_filter(rng.random(shape), 2) > 0.5, jnp.float32)
    by_fft = half_spectrum_by_fft(x, dimensions=len(shape))
    monkeypatch.setattr(module.jnp, "tensordot", three_part_tensordot)
    by_products = half_spectrum_by_products(x, dimensions=len(shape))
    most = max(np.abs(part).max() for part in by_fft)
    for ours, theirs in zip(by_products, by_fft, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * most)


@pytest.mark.parametrize("spectrum", ["complex", "log_magnitude"])
def test_products_give_the_same_loss_and_gradient(x64, monkeypatch, rng, spectrum):
    p, m = map(jnp.asarray, blobs(rng, (15, 16)))

    def value_and_gradient():
        def loss(p):
            return spectral_correlation_loss(
                p, m, spectrum=spectrum, band=soft_band(3.0), pooling="batch"
            ) + focal_frequency_loss(p, m)

        return jax.value_and_grad(loss)(p)

    by_fft = value_and_gradient()
    monkeypatch.setattr(
        module,
        "half_spectrum",
        lambda x, dimensions: half_spectrum_by_products(x, dimensions=dimensions),
    )
    for ours, theirs in zip(value_and_gradient(), by_fft, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)


def test_a_tpu_gets_products_and_others_a_transform(rng):
    p, m = (jnp.asarray(x, jnp.float32) for x in blobs(rng, (8, 8)))

    def lowered(platform):
        loss = jax.jit(jax.grad(lambda p: spectral_correlation_loss(p, m, **PRESETS["midband"])))
        return loss.trace(p).lower(lowering_platforms=(platform,)).as_text()

    for platform, transforms in (("tpu", False), ("cpu", True), ("cuda", True)):
        assert ("stablehlo.fft" in lowered(platform)) == transforms, platform
