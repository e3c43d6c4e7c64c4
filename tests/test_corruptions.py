"""Corruptions against closed forms and computations by another way."""

import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from spectral_jax.data import corruptions
from spectral_jax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, for_modality, strength
from spectral_jax.data.datasets import DATASETS

GREY = np.full((2, 64, 64, 1), 0.5, np.float32)


@pytest.fixture
def picture(rng):
    """Smooth, within black and white, with edges."""
    noise = ndimage.gaussian_filter(rng.random((3, 48, 40, 1)), (0, 3, 3, 0))
    noise = (noise - noise.min()) / np.ptp(noise)
    return np.where(noise > 0.6, 0.85, 0.2 + 0.5 * noise).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "value", "deviation"),
    [("gaussian", 0.1, 0.1), ("speckle", 0.2, 0.1), ("shot", 50, math.sqrt(0.5 / 50))],
)
def test_noise_has_its_deviation_and_keeps_the_mean(rng, name, value, deviation):
    noise = CORRUPTIONS[name](GREY, value, rng) - GREY
    # five standard errors
    assert noise.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * GREY.size))
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(GREY.size)


def test_impulses_are_half_salt_half_pepper(rng):
    changed = corruptions.impulse(GREY, 0.2, rng)
    assert set(np.unique(changed)) == {0, 0.5, 1}
    for value in (0, 1):
        count = (changed == value).sum()
        assert stats.binomtest(int(count), GREY.size, 0.1).pvalue > 0.001


def test_rician_noise_of_nothing_is_rayleigh(rng):
    noise = corruptions.rician(np.zeros((4, 64, 64, 1), np.float32), 0.1, rng)
    assert noise.mean() == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.02)
    assert stats.kstest(noise.ravel(), stats.rayleigh(scale=0.1).cdf).pvalue > 0.001
    far = corruptions.rician(np.full((4, 64, 64, 1), 0.8, np.float32), 0.05, rng)
    assert (far**2).mean() == pytest.approx(0.8**2 + 2 * 0.05**2, rel=0.01)  # exact moment


def test_gaussian_blur_scales_with_the_image_and_matches_a_sum(rng):
    image = np.zeros((1, 112, 112, 1), np.float32)
    image[0, 56, 56] = 1
    image[0, 40:, :20] = 0.5
    # 4 at 224 is 2 at 112, where a sampled Gaussian is good
    by_hand = ndimage.gaussian_filter(image.astype(float), (0, 2, 2, 0), mode="reflect", truncate=8)
    np.testing.assert_allclose(corruptions.gaussian_blur(image, 4, rng), by_hand, atol=1e-6)
    # in a small slice the fraction of a pixel still counts: the gain of a wave is known
    wave = np.cos(np.pi * 12 * (np.arange(40) + 0.5) / 40, dtype=np.float32)
    slices = np.broadcast_to(wave[:, None], (1, 40, 40)).astype(np.float32)[..., None]
    gain = np.exp(-2 * (np.pi * 40 / 224 * 12 / 80) ** 2)
    assert gain < 0.99
    blurred = corruptions.gaussian_blur(slices, 1, rng)
    np.testing.assert_allclose(blurred, gain * slices, atol=1e-6)


def test_motion_blur_is_a_convolution_with_a_centred_line(picture):
    class Level:
        def uniform(self, low, high):
            return 0.0

    blurred = corruptions.motion_blur(picture, (20, 15), Level())
    kernel = corruptions.motion_kernel(20 * 48**0.5 * 40**0.5 / 224, 15 * 1920**0.5 / 224, 0.0)
    assert kernel.sum() == pytest.approx(1)
    middle = len(kernel) // 2
    assert kernel[middle].sum() == pytest.approx(1)  # horizontal
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)
    by_hand = ndimage.convolve(picture, kernel[None, :, :, None], mode="nearest")
    np.testing.assert_allclose(blurred, by_hand, atol=1e-5)
    slanted = corruptions.motion_kernel(6, 100, math.pi / 4)
    rows, columns = np.nonzero(slanted > 0.01)
    assert np.abs(rows - columns).max() <= 1


def test_intensities_follow_their_formulas(picture, rng):
    mean = picture.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(
        corruptions.contrast(picture, 0.3, rng), 0.3 * picture + 0.7 * mean, atol=1e-6
    )
    np.testing.assert_allclose(corruptions.brightness(picture, 1.2, rng), 1.2 * picture)
    np.testing.assert_allclose(
        corruptions.gamma(picture, 1.6, rng), np.exp(1.6 * np.log(picture)), rtol=1e-5
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(rng, channels):
    image = rng.integers(0, 256, (2, 24, 40, channels)).astype(np.uint8)
    squeezed = corrupt(image, "jpeg", 3, modality="colonoscopy", case="a")
    for before, after in zip(image, squeezed, strict=True):
        file = io.BytesIO()
        Image.fromarray(before.squeeze()).save(file, "JPEG", quality=15)
        np.testing.assert_array_equal(after.squeeze(), np.asarray(Image.open(file)))


def test_pixels_become_means_of_blocks(picture, rng):
    blocks = picture[:, :48, :40].reshape(3, 12, 4, 10, 4, 1).mean((2, 4))
    coarse = corruptions.pixelate(picture, 0.25, rng)
    np.testing.assert_allclose(coarse, blocks.repeat(4, 1).repeat(4, 2), atol=1e-5)


def test_ghosts_are_weakened_lines_of_k_space(picture, rng):
    spectrum = np.fft.fftshift(np.fft.fft2(picture, axes=(1, 2)), axes=(1, 2))
    for line in range(48):
        frequency = line - 24
        if frequency % 4 == 0 and frequency != 0:
            spectrum[:, line] *= 1 - 0.7
    expected = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2)), axes=(1, 2))
    assert np.abs(expected.imag).max() < 1e-6
    np.testing.assert_allclose(corruptions.ghosting(picture, 0.7, rng), expected.real, atol=1e-5)
    point = np.zeros((1, 48, 1, 1), np.float32)
    point[0, 10] = 1
    ghosts = corruptions.ghosting(point, 1.0, rng).squeeze()
    # minus a quarter of a comb of four, plus the mean, which is left alone
    np.testing.assert_allclose(ghosts[[22, 34, 46]], -0.25 + 1 / 48, atol=1e-5)


def test_gibbs_removes_what_lies_outside_a_circle(picture, rng):
    spectrum = np.fft.fft2(picture, axes=(1, 2))
    for row in range(48):
        for column in range(40):
            fy, fx = min(row, 48 - row) / 48, min(column, 40 - column) / 40
            if math.hypot(fy, fx) > 0.2:
                spectrum[:, row, column] = 0
    expected = np.fft.ifft2(spectrum, axes=(1, 2)).real
    np.testing.assert_allclose(corruptions.gibbs(picture, 0.6, rng), expected, atol=1e-5)


def test_a_bias_field_is_smooth_shared_by_slices_and_bounded(picture, rng):
    log = np.log(corruptions.bias_field(picture, 0.6, rng) / picture)[..., 0]
    np.testing.assert_allclose(log, log[:1].repeat(3, 0), atol=1e-5)
    assert np.abs(log).max() == pytest.approx(0.6, abs=1e-4)
    assert abs(log[0].mean()) < 1e-4
    # a cubic: fourth differences vanish
    assert np.abs(np.diff(log[0], 4, axis=0)).max() < 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_grows_with_its_severity_and_repeats_itself(picture, name, dtype):
    image = np.rint(picture * np.iinfo(dtype).max).astype(dtype)
    options = {"modality": "cardiac cine MRI", "case": "patient 7"}
    before = image.copy()
    changed = [corrupt(image, name, severity, **options) for severity in range(1, 6)]
    np.testing.assert_array_equal(image, before)
    distances = [np.sqrt(((c / 1.0 - image) ** 2).mean()) for c in changed]
    assert distances[0] > 0
    # directions and fields are drawn anew at each severity: neighbours may differ by a little
    assert distances[4] > 1.2 * distances[0]
    assert all(b > 0.9 * a for a, b in itertools.pairwise(distances)), distances
    assert changed[0].dtype == dtype
    assert changed[0].shape == image.shape
    np.testing.assert_array_equal(changed[2], corrupt(image, name, 3, **options))
    if name in ("gaussian", "speckle", "impulse", "shot", "rician", "bias_field", "motion_blur"):
        other = corrupt(image, name, 3, modality="T1 MRI", case="patient 8")
        assert (changed[2] != other).any()


def test_the_draw_is_the_same_on_every_machine():
    image = np.full((1, 2, 2, 1), 128, np.uint8)
    noisy = corrupt(image, "gaussian", 5, modality="colonoscopy", case="a")
    # crc32 of "a/gaussian/5", which is fixed, seeds numpy's generator, whose stream is versioned
    draw = np.random.default_rng(0xBDA2E4).standard_normal(4, np.float32)
    expected = np.clip(128 / 255 + 0.38 * draw, 0, 1) * 255
    np.testing.assert_array_equal(noisy.ravel(), np.rint(expected))


def test_every_data_set_has_corruptions_of_its_modality():
    for dataset in DATASETS.values():
        for name in for_modality(dataset.modality):
            assert strength(name, 5, dataset.modality)
    assert "rician" in for_modality("cardiac cine MRI")
    assert "rician" in for_modality("FLAIR (BRATS)")
    assert "rician" not in for_modality("abdominal CT")
    assert "jpeg" not in for_modality("T1 MRI")
    assert "motion_blur" in for_modality("H&E histology")
    assert "motion_blur" not in for_modality("chest X-ray")
    assert for_modality("any") == for_modality("colonoscopy")
    assert set(SEVERITIES) == set(CORRUPTIONS)
    assert all(len(row) == 5 for rows in SEVERITIES.values() for row in rows.values())


def test_what_is_unknown_is_named():
    image = np.zeros((1, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=r"'fog': choose one of gaussian"):
        corrupt(image, "fog", 1, modality="CT", case="a")
    with pytest.raises(ValueError, match=r"severity=6 of gamma"):
        corrupt(image, "gamma", 6, modality="CT", case="a")
    with pytest.raises(ValueError, match=r"float32 .*expected uint8 or uint16"):
        corrupt(image.astype(np.float32), "gamma", 1, modality="CT", case="a")
