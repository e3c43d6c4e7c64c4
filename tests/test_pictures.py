"""Pictures, masks and names as people have them: read as a person sees them, or refused by name.

Situations are those of public threads; each test names its own.
"""

import io
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from scipy import ndimage

from spectral_jax.data.datasets import DATASETS, DataError, files, prepare
from spectral_jax.data.datasets.dataset import COLORS
from spectral_jax.data.datasets.summary import SUMMARY_FILE
from spectral_jax.data.pictures import (
    DEEP_COLOUR,
    TRANSPARENT,
    TURNED,
    find_kind,
    read_binary_mask,
    read_image,
    read_mask,
    read_picture,
)
from spectral_jax.data.sources import Split
from spectral_jax.data.volumes import BLANK
from spectral_jax.files import read_json

HEIGHT, WIDTH = 24, 32
CLASSES = "background\nliver\nspleen\n"
ORIENTATION = 274
# how viewers turn what is stored: of EXIF's eight orientations
DISPLAY = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a),
}


@pytest.fixture
def grey(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)


@pytest.fixture
def colour(rng):
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def regions(*values) -> np.ndarray:
    """Values as columns of one width, the first one twice."""
    columns = np.repeat([values[0], *values], WIDTH // (len(values) + 1) + 1)[:WIDTH]
    return np.tile(np.array(columns, np.uint8), (HEIGHT, 1))


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(path, **options)
    return path


def write_set(root, images, masks, classes="", ending=".png"):
    """`images/p0.png` ... and `masks/p0.png` ..."""
    for kind, arrays in (("images", images), ("masks", masks)):
        for number, array in enumerate(arrays):
            write(root / kind / f"p{number}{ending if kind == 'images' else '.png'}", array)
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def prepare_set(root, **options):
    folder = prepare(DATASETS["folder"], root=root, data_dir=root / ".prepared", **options)
    return folder, read_json(folder / SUMMARY_FILE, "")["remarks"]


def case(folder, name):
    return Split(folder, "all").volume(name)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg"])
def test_exif_orientation_is_applied(orientation, ending, colour, tmp_path):
    """Of facebookresearch/detectron2#1319, ultralytics/yolov5#405."""
    smooth = ndimage.gaussian_filter(colour.astype(float), (6, 6, 0)).astype(np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"exif": exif} if ending != ".tif" else {"tiffinfo": {ORIENTATION: orientation}}
    write(tmp_path / f"a{ending}", smooth, **options)
    picture = read_picture(tmp_path / f"a{ending}")
    assert picture.turned == (orientation > 1)
    assert (TURNED in picture.notes) == (orientation > 1)
    expected = DISPLAY[orientation](smooth)
    assert picture.pixels.shape == expected.shape
    difference = np.abs(picture.pixels.astype(int) - expected)
    assert difference.max() == 0 if ending != ".jpg" else difference.mean() < 3


def test_turned_pictures_meet_masks_drawn_on_what_viewers_show(colour, tmp_path):
    """Of Peterande/D-FINE#308 and ultralytics/yolov5#405."""
    mask = regions(0, 255)
    mask[: HEIGHT // 3] = 0
    exif = Image.Exif()
    for orientation in (3, 6):
        root = tmp_path / str(orientation)
        exif[ORIENTATION] = orientation
        for number in range(4):
            write(root / f"images/p{number}.png", colour, exif=exif)
            write(root / f"masks/p{number}.png", np.ascontiguousarray(DISPLAY[orientation](mask)))
        folder, remarks = prepare_set(root)
        volume = case(folder, "p1")
        np.testing.assert_array_equal(volume.image[0], DISPLAY[orientation](colour))
        np.testing.assert_array_equal(volume.label[0], DISPLAY[orientation](mask) > 0)
        assert f"{TURNED} (4 of 4 cases, such as p0)" in [r.replace("p1)", "p0)") for r in remarks]
    write(tmp_path / "6/masks/p2.png", mask)  # drawn on the picture as it is stored
    with pytest.raises(DataError, match=r"p2\.png: .*EXIF orientation.*exiftool"):
        prepare_set(tmp_path / "6")


def test_a_mask_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    mask = regions(0, 2, 1)
    write(tmp_path / "a.png", mask, exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), np.rot90(mask, -1))


def test_broken_exif_data_break_no_picture(colour, tmp_path):
    write(tmp_path / "a.jpg", colour, exif=b"Exif\0\0no TIFF header at all")
    assert read_picture(tmp_path / "a.jpg").pixels.shape == colour.shape
    assert read_picture(tmp_path / "a.jpg").notes == ()


def grey_as(kind, grey) -> Image.Image:
    picture = Image.fromarray(grey)
    if kind == "palette":
        indices = Image.fromarray(255 - grey)
        indices = indices.convert("P")
        indices.putdata((255 - grey).ravel().tolist())
        indices.putpalette([value for index in range(256) for value in [255 - index] * 3])
        return indices
    return picture.convert(kind)


GREY_KINDS = ("L", "LA", "RGB", "RGBA", "palette")


@pytest.mark.parametrize("kind", GREY_KINDS)
def test_grey_counts_as_grey_however_it_is_stored(kind, grey, tmp_path):
    """Of labelme's and scanners' exports: LA, P, grey saved as RGB."""
    write(tmp_path / "a.png", grey_as(kind, grey))
    pixels = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels, grey[..., None])
    assert find_kind([tmp_path / "a.png"]).channels == 1


def test_a_set_of_grey_pictures_of_many_kinds_has_one_channel(grey, tmp_path):
    images = [grey_as(kind, grey) for kind in GREY_KINDS]
    folder, remarks = prepare_set(write_set(tmp_path, images, [regions(0, 255)] * 5))
    split = Split(folder, "all")
    assert split.info.channels == 1
    for name in split.cases:
        np.testing.assert_array_equal(split.volume(name).image[0, ..., 0], grey)
    assert not any("channel" in remark for remark in remarks)


def test_one_coloured_picture_makes_a_set_coloured(grey, colour, tmp_path):
    folder, _ = prepare_set(
        write_set(tmp_path, [grey, grey_as("LA", grey), colour, grey], [regions(0, 255)] * 4)
    )
    split = Split(folder, "all")
    assert split.info.channels == 3
    np.testing.assert_array_equal(split.volume("p2").image[0], colour)
    np.testing.assert_array_equal(split.volume("p1").image[0], np.stack([grey] * 3, -1))


def test_cmyk_is_read_as_it_looks(tmp_path):
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:, 4:] = (200, 30, 90)
    for ending in (".tif", ".jpg"):
        write(tmp_path / f"a{ending}", Image.fromarray(colours).convert("CMYK"))
        pixels = read_image(tmp_path / f"a{ending}").astype(int)
        assert np.abs(pixels[:, [0, 7]] - colours[:, [0, 7]]).max() < 8


def test_colours_of_another_kind_are_named(colour, tmp_path):
    lab = ImageCms.profileToProfile(
        Image.fromarray(colour),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    write(tmp_path / "a.tif", lab)
    with pytest.raises(DataError, match=r"a\.tif: colours of kind LAB; expected grey or RGB"):
        read_image(tmp_path / "a.tif")


def png_of_16_bit(path, array):
    """A PNG of `[height, width, channels]`, uint16, which Pillow does not write in colour."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(content)


def test_what_is_read_otherwise_than_stored_is_said(colour, grey, tmp_path):
    png_of_16_bit(tmp_path / "a.png", colour.astype(np.uint16) * 257)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, colour)
    assert picture.notes == (DEEP_COLOUR,)
    alpha = np.full(grey.shape, 255, np.uint8)
    write(tmp_path / "b.png", np.dstack([colour, alpha]))
    assert read_picture(tmp_path / "b.png").notes == ()
    alpha[3, 4] = 0
    write(tmp_path / "b.png", np.dstack([colour, alpha]))
    assert read_picture(tmp_path / "b.png").notes == (TRANSPARENT,)


def tiff(array, *, order="<", white_is_zero=False, orientation=1) -> bytes:
    """A TIFF of uint16 `[height, width]` in either order of bytes."""
    height, width = array.shape
    data = array.astype(order + "u2").tobytes()
    tags = {
        **{256: width, 257: height, 258: 16, 259: 1, 262: int(not white_is_zero), 273: 0},
        **{274: orientation, 277: 1, 278: height, 279: len(data)},
    }
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    content = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8)
    content += struct.pack(order + "H", len(tags))
    for tag, value in tags.items():
        content += struct.pack(order + "HHII", tag, 4, 1, value)
    return content + struct.pack(order + "I", 0) + data


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", [1, 6])
def test_tiff_of_16_bit_in_either_order_of_bytes(order, orientation, rng, tmp_path):
    """Of scikit-image/scikit-image#97, python-pillow/Pillow#7301."""
    array = rng.integers(0, 65536, (8, 12)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(array, order=order, orientation=orientation))
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.dtype == np.uint16
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels[..., 0], DISPLAY[orientation](array))


def test_tiff_in_which_white_is_zero(rng, tmp_path):
    """Of InsightSoftwareConsortium/ITK#6636, darktable-org/darktable#18815."""
    array = rng.integers(0, 65536, (8, 12)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(array))
    (tmp_path / "b.tif").write_bytes(tiff(65535 - array, white_is_zero=True))
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 0], array)


def test_tiff_that_pillow_does_not_know_is_called_no_damage(rng, tmp_path):
    array = rng.integers(0, 65536, (8, 12)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(array, order=">", white_is_zero=True))
    with pytest.raises(DataError, match=r"a\.tif: a TIFF of a kind that is not read.*as PNG"):
        read_image(tmp_path / "a.tif")


def test_pages_are_refused_in_images_and_masks(colour, tmp_path):
    """Of TomographicImaging/CIL#1356, ilastik/ilastik#2263."""
    page = Image.fromarray(colour)
    write(tmp_path / "a.tif", page, save_all=True, append_images=[page, page])
    for read in (read_image, read_mask, read_binary_mask):
        with pytest.raises(DataError, match=r"a\.tif: holds 3 pages; .*save each page"):
            read(tmp_path / "a.tif")


def test_previews_are_no_pages(colour, tmp_path):
    page, preview = Image.fromarray(colour), Image.fromarray(colour[::4, ::4])
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    write(tmp_path / "a.tif", page, save_all=True, append_images=[preview])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), colour)
    write(tmp_path / "b.jpg", page, format="MPO", save_all=True, append_images=[page])
    with Image.open(tmp_path / "b.jpg") as file:
        assert file.n_frames == 2  # as cameras write it
    assert read_image(tmp_path / "b.jpg").shape == colour.shape


def test_12_bits_in_16_are_stored_in_full_range(rng, tmp_path):
    """Of ilastik/ilastik#126, danforthcenter/plantcv#1804, HenriquesLab/ZeroCostDL4Mic#110."""
    images = [16 * rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint16) for _ in range(4)]
    images[0][0, 0] = 4080
    folder, remarks = prepare_set(write_set(tmp_path / "a", images, [regions(0, 255)] * 4))
    stored = case(folder, "p2").image[0, ..., 0]
    np.testing.assert_array_equal(stored, np.rint(images[2] * (65535 / 4095)))
    assert Split(folder, "all").info.bits == 12
    assert any("16-bit pictures use 12 bits, up to 4080" in remark for remark in remarks)

    images[1][0, 0] = 65535  # all bits are used
    folder, remarks = prepare_set(write_set(tmp_path / "b", images, [regions(0, 255)] * 4))
    np.testing.assert_array_equal(case(folder, "p2").image[0, ..., 0], images[2])
    assert not any("bits" in remark for remark in remarks)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_large_pictures_are_read_up_to_a_limit_that_is_named(ending, grey, tmp_path, monkeypatch):
    """Of histolab/histolab#297, Project-MONAI/MONAILabel#1230, nadeemlab/DeepLIIF#48."""
    write(tmp_path / f"a{ending}", grey)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own, beyond which it warns
    np.testing.assert_array_equal(read_image(tmp_path / f"a{ending}")[..., 0], grey)
    monkeypatch.setenv("SPECTRAL_JAX_MAX_GIB", "1e-7")
    with pytest.raises(DataError, match=r"a\.\w+: takes .* the limit for one file .* raise"):
        read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {"big_tiff": True}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_adobe_deflate"}),
        ("a.png", {"format": "WEBP", "lossless": True}),
    ],
)
def test_kinds_of_files_that_hold_the_same(name, options, colour, tmp_path):
    write(tmp_path / name, colour, **options)
    np.testing.assert_array_equal(read_image(tmp_path / name), colour)


@pytest.mark.parametrize(("name", "kind"), [("a.gif", "GIF"), ("a.png", "PNG"), ("a.png", "WEBP")])
def test_animations_are_no_pictures(name, kind, tmp_path):
    frames = [Image.fromarray(regions(0, value)) for value in (90, 180, 255)]
    write(tmp_path / name, frames[0], format=kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=rf"{name}: holds 3 pages; expected one picture"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("highest", [1.0, 900.0])
def test_pictures_of_fractions_are_refused_and_masks_of_whole_ones_read(highest, tmp_path):
    floats = np.linspace(0, highest, 8 * 9, dtype=np.float32).reshape(8, 9)
    write(tmp_path / "a.tif", floats)
    with pytest.raises(DataError, match=r"a\.tif: a picture of 32-bit floats; expected 8 or 16"):
        read_image(tmp_path / "a.tif")
    write(tmp_path / "b.tif", regions(0, 2, 1).astype(np.float32))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.tif"), regions(0, 2, 1))
    write(tmp_path / "c.tif", floats)
    with pytest.raises(DataError, match=r"c\.tif: the label holds the values"):
        read_mask(tmp_path / "c.tif")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "its content is none of PNG, JPEG, TIFF"),
        (b"<!DOCTYPE html><html>login first</html>", "its content is none of PNG, JPEG, TIFF"),
        (b"", "its content is none of PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS"),
    ],
    ids=["HEIC", "HTML", "empty", "LFS"],
)
def test_what_is_no_picture_in_spite_of_its_name(content, message, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jpg: damaged, or no picture: {message}"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_pictures_one_pixel_high_or_wide(size, rng, tmp_path):
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for _ in range(4)]
    masks = [np.where(np.arange(size[0] * size[1]).reshape(size) % 8 < 4, 255, 0)] * 4
    folder, _ = prepare_set(write_set(tmp_path, images, [m.astype(np.uint8) for m in masks]))
    np.testing.assert_array_equal(case(folder, "p3").image[0], images[3])
    np.testing.assert_array_equal(case(folder, "p3").label[0], masks[3] > 0)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((0, 1, 255), "0 .*, 1 .*255"),  # VOC: object and void, sacmehta/ESPNetv2#4
        ((0, 1, 2, 255), "0 .*2 .*255"),
        ((0, 128, 255), "0 .*128 .*255"),  # a trimap
        ((0, 85, 170, 255), "85"),  # class numbers, stretched
        ((128, 255), "128 .*255"),
        ((1, 255), "1 .*255"),
    ],
)
def test_more_than_two_levels_are_no_two_classes(values, found, tmp_path):
    write(tmp_path / "a.png", regions(*values))
    with pytest.raises(DataError, match=rf"a\.png: .*{found}.*more than black and one colour"):
        read_binary_mask(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("inside", "border"), [(1, 255), (128, 255), ((128, 0, 0), (224, 224, 192)), (255, (0, 0, 255))]
)
def test_a_thin_border_of_void_is_seen(inside, border, tmp_path):
    disc = np.hypot(*np.mgrid[-12:12, -16:16]) < 8
    mask = np.zeros((*disc.shape, 3), np.uint8)
    mask[disc] = inside
    mask[ndimage.binary_dilation(disc) & ~disc] = border
    write(tmp_path / "a.png", mask)
    with pytest.raises(DataError, match=r"marks what is not known"):
        read_binary_mask(tmp_path / "a.png")


def test_three_levels_in_a_jpeg_are_seen(tmp_path):
    mask = np.kron(regions(0, 128, 255), np.ones((4, 4), np.uint8))
    write(tmp_path / "a.jpg", mask, quality=80)
    with pytest.raises(DataError, match=r"a\.jpg: .*more than black and one colour"):
        read_binary_mask(tmp_path / "a.jpg")


def test_colours_are_no_two_classes_without_their_names(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[:, 10:20], mask[:, 20:] = (255, 0, 0), (0, 255, 0)
    write(tmp_path / "a.png", mask)
    with pytest.raises(DataError, match=r"a\.png: #00ff00 .*#ff0000 .*classes\.txt"):
        read_binary_mask(tmp_path / "a.png")


def through_jpeg(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def blurred(mask):
    return ndimage.gaussian_filter(mask.astype(float), 1.5).round().astype(np.uint8)


@pytest.mark.parametrize(
    "kind",
    [
        "0/1",
        "0/255",
        "red",
        "blurred",
        "smoothed",
        "JPEG",
        "JPEG as PNG",
        "white",
        "16 bit",
        "1 bit",
    ],
)
def test_black_and_white_in_every_form(kind, tmp_path):
    disc = np.hypot(*np.mgrid[-24:24, -32:32]) < 15
    large = (np.hypot(*np.mgrid[-24:24:0.5, -32:32:0.5]) < 15).astype(np.uint8) * 255
    mask = disc.astype(np.uint8) * 255
    shown = {
        "0/1": disc.astype(np.uint8),
        "red": np.stack([mask, 0 * mask, 0 * mask], -1),
        "blurred": blurred(mask),
        "smoothed": np.asarray(Image.fromarray(large).resize((64, 48), Image.Resampling.BOX)),
        "JPEG as PNG": through_jpeg(np.stack([mask, mask // 2, 0 * mask], -1)),
        "white": np.full_like(mask, 255),
        "16 bit": mask.astype(np.uint16) * 257,
        "1 bit": Image.fromarray(disc),
    }.get(kind, mask)
    path = write(tmp_path / ("a.jpg" if kind == "JPEG" else "a.png"), shown)
    expected = np.ones_like(disc) if kind == "white" else disc
    assert (read_binary_mask(path) == expected).mean() > (
        0.97 if kind in ("blurred", "smoothed", "JPEG as PNG") else 0.999
    )


def test_dark_masks_are_refused(tmp_path):
    for name, mask in (("a.png", regions(0, 2)), ("b.jpg", regions(0, 1))):
        write(tmp_path / name, mask)
        with pytest.raises(DataError, match=rf"{name}: the brightest value is \d, and nothing is"):
            read_binary_mask(tmp_path / name)
    np.testing.assert_array_equal(
        read_binary_mask(write(tmp_path / "c.png", regions(0, 90)), 50), regions(0, 1)
    )


@pytest.mark.parametrize("under", [0, 255])
def test_a_shape_in_the_transparency_is_the_mask(under, tmp_path):
    """Of predictivephenomics/RhizoVisionExplorer#2, ncats/molvec#16."""
    shape = regions(0, 255)
    rgba = np.full((HEIGHT, WIDTH, 4), under, np.uint8)
    rgba[..., 3] = shape
    write(tmp_path / "a.png", rgba)
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "a.png"), shape > 0)
    rgba[..., 3] = 255  # nothing is transparent: the colours are the mask
    rgba[..., :3] = shape[..., None]
    write(tmp_path / "a.png", rgba)
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "a.png"), shape > 0)


@pytest.mark.parametrize("under", [0, 255])
def test_an_empty_shape_in_the_transparency_is_an_empty_mask(under, tmp_path):
    """Of a set whose shapes are in the transparency, one without an object."""
    rgba = np.full((HEIGHT, WIDTH, 4), under, np.uint8)
    rgba[..., 3] = 0
    write(tmp_path / "a.png", rgba)
    assert not read_binary_mask(tmp_path / "a.png").any()
    assert read_picture(tmp_path / "a.png").notes == (TRANSPARENT, BLANK)
    rgba[..., :3] = regions(0, 255)[..., None]  # the colours alone hold something
    write(tmp_path / "a.png", rgba)
    np.testing.assert_array_equal(read_binary_mask(tmp_path / "a.png"), regions(0, 1))


def test_colours_and_transparency_that_differ_are_refused(tmp_path):
    rgba = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    rgba[..., 3] = regions(0, 255)
    rgba[:5, :, :3] = 0
    write(tmp_path / "a.png", rgba)
    for read in (read_binary_mask, read_mask):
        with pytest.raises(DataError, match=r"a\.png: transparent pixels hold colour.*flattened"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["grey", "palette", "grey as RGB", "RGBA"])
def test_class_numbers_in_every_form(form, tmp_path):
    numbers = regions(0, 2, 1)
    if form == "palette":
        picture = Image.fromarray(numbers).convert("P")
        picture.putdata(numbers.ravel().tolist())
        picture.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0])
    else:
        picture = Image.fromarray(numbers).convert({"RGBA": "RGBA", "grey": "L"}.get(form, "RGB"))
    write(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), numbers)


def test_class_numbers_in_a_lossy_file_are_refused(grey, tmp_path):
    """Of romi/plant-3d-vision#140, mantasu/glasses-detector#23."""
    for number in range(4):
        write(tmp_path / f"masks/p{number}.jpg", regions(0, 2, 1), quality=95)
        write(tmp_path / f"images/p{number}.png", grey)
    (tmp_path / "classes.txt").write_text(CLASSES)
    with pytest.raises(DataError, match=r"masks/p\d\.jpg: .*JPEG.*changes class numbers.*PNG"):
        prepare_set(tmp_path)
    write(tmp_path / "a.png", regions(0, 2, 1), format="JPEG")  # whatever its name says
    write(tmp_path / "a.tif", regions(0, 2, 1), compression="jpeg")
    for name in ("a.png", "a.tif"):
        with pytest.raises(DataError, match="changes class numbers"):
            read_mask(tmp_path / name)


COLOURS = {0: (0, 0, 0), 1: (0, 128, 0), 2: (0, 0, 255)}


def in_colours(numbers) -> np.ndarray:
    return np.array([COLOURS[number] for number in range(3)], np.uint8)[numbers]


def test_colours_of_classes_are_read_from_classes_txt(grey, tmp_path):
    """Of wkentaro/labelme#785: masks without red were all background."""
    numbers = regions(0, 2, 1)
    root = write_set(tmp_path, [grey] * 4, [in_colours(numbers)] * 4, CLASSES)
    with pytest.raises(DataError, match=r"a mask of colours, #000000 .*#008000.*'liver #00ff00'"):
        prepare_set(root)
    (root / "classes.txt").write_text("background #000000\nliver  #008000\nleft spleen\t#0000FF\n")
    write(root / "masks/p1.png", numbers)  # class numbers do as well
    folder, _ = prepare_set(root)
    split = Split(folder, "all")
    assert split.info.classes == ("background", "liver", "left spleen")
    assert split.info.colors == ("#000000", "#008000", "#0000ff")  # as people know them
    for name in split.cases:
        np.testing.assert_array_equal(split.volume(name).label[0], numbers)
    mask = in_colours(numbers)
    mask[0, 0] = (1, 2, 3)
    write(root / "masks/p3.png", mask)
    with pytest.raises(
        DataError, match=r"p3\.png: #010203 .* is the colour of no class; .*#008000"
    ):
        prepare_set(root)


def test_two_classes_may_have_colours_and_greys_too(grey, tmp_path):
    masks = [regions(128, 255)] * 4
    root = write_set(tmp_path, [grey] * 4, masks, "outside #808080\nlesion #ffffff\n")
    folder, _ = prepare_set(root)
    np.testing.assert_array_equal(case(folder, "p0").label[0], masks[0] == 255)
    assert Split(folder, "all").info.colors[1] == COLORS[0]  # a grey would not show on greys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("background #000000\nliver\n", "1 of 2 classes have a colour"),
        ("background #000000\nliver #00ff00\nspleen #00FF00", "'#00ff00' appears twice"),
        ("background\nliver\nliver\n", "'liver' appears twice"),
        ("liver\n", "liver; expected background and a class"),
    ],
)
def test_class_lists_that_cannot_be_are_named(text, message, grey, tmp_path):
    root = write_set(tmp_path, [grey] * 4, [regions(0, 1)] * 4, text)
    with pytest.raises(DataError, match=rf"classes\.txt: .*{message}"):
        prepare_set(root)


def test_values_that_are_no_class_are_listed(grey, tmp_path):
    root = write_set(tmp_path, [grey] * 4, [regions(0, 128, 255)] * 4, CLASSES)
    with pytest.raises(DataError, match=r"value 255, but there are 3 classes.*holds 0, 128, 255"):
        prepare_set(root)


def test_masks_without_foreground_are_noted(grey, tmp_path):
    """Of Beckschen/TransUNet#23."""
    root = write_set(tmp_path / "a", [grey] * 4, [regions(0)] * 4)
    _, remarks = prepare_set(root)
    assert any("no mask holds foreground: there is nothing to learn" in r for r in remarks)
    root = write_set(tmp_path / "b", [grey] * 4, [regions(0, 1)] * 4, CLASSES)
    _, remarks = prepare_set(root)
    assert any("no mask holds spleen" in remark for remark in remarks)


# --- names ----------------------------------------------------------------------------------------


def test_accents_match_however_they_are_written(colour, tmp_path):
    """Of renpy/renpy#2327: macOS writes a letter and its accent."""
    for number in range(4):
        name = f"L\u00e4sion{number}"
        write(tmp_path / f"images/{unicodedata.normalize('NFC', name)}.png", colour)
        write(tmp_path / f"masks/{unicodedata.normalize('NFD', name)}_mask.png", regions(0, 255))
    folder, _ = prepare_set(tmp_path)
    assert sorted(Split(folder, "all").cases) == [f"L\u00e4sion{number}" for number in range(4)]


def test_names_with_dots_and_endings_in_capitals(colour, tmp_path):
    """Of MIC-DKFZ/nnUNet#2187: UIDs as names."""
    for number in range(4):
        write(tmp_path / f"images/1.2.840.{number}.PNG", colour)
        write(tmp_path / f"masks/1.2.840.{number}_Mask.png".lower(), regions(0, 255))
    folder, _ = prepare_set(tmp_path)
    assert sorted(Split(folder, "all").cases) == [f"1.2.840.{number}" for number in range(4)]


def test_hidden_files_and_folders_are_no_data(tmp_path):
    """Of open-edge-platform/anomalib#865: .ipynb_checkpoints and the like."""
    for name in ("a.JPG", "sub/b.jpg", ".ipynb_checkpoints/c.jpg", "__MACOSX/d.jpg", ".e.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list(files.find(tmp_path, r"(?:.*/)?(\w)\.jpg")) == ["a", "b"]
    (tmp_path / "F.NII.GZ").touch()
    assert list(files.find(tmp_path, r"(\w)\.nii\.gz")) == ["F"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"]
)
def test_class_names_in_every_encoding(encoding, grey, tmp_path):
    """Of ivadomed/ivadomed#981: PowerShell writes UTF-16."""
    root = write_set(tmp_path, [grey] * 4, [regions(0, 1)] * 4)
    (root / "Classes.TXT").write_bytes("background\r\nL\u00e4sion\r\n".encode(encoding))
    folder, _ = prepare_set(root)
    assert Split(folder, "all").info.classes == ("background", "L\u00e4sion")


def test_a_class_list_that_is_no_text_is_named(grey, tmp_path):
    root = write_set(tmp_path, [grey] * 4, [regions(0, 1)] * 4)
    (root / "classes.txt").write_bytes(b"PK\3\4\0\0\0\0abc")
    with pytest.raises(DataError, match=r"classes\.txt: no text"):
        prepare_set(root)


def test_a_mask_of_almost_the_same_name_is_pointed_out(colour, tmp_path):
    for name in ("Scan1", "Scan2"):
        write(tmp_path / f"images/{name}.png", colour)
    write(tmp_path / "masks/scan1-mask.png", regions(0, 255))
    write(tmp_path / "masks/Scan2.png", regions(0, 255))
    message = r"images/Scan1\.png: no mask of that name in .*masks \(there is scan1-mask\.png\);"
    with pytest.raises(DataError, match=message):
        prepare_set(tmp_path)


def test_files_that_are_left_out_are_told(colour, tmp_path):
    root = write_set(tmp_path, [colour] * 4, [regions(0, 255)] * 4)
    for kind in ("images", "masks"):
        write(root / kind / "deeper/p9.png", colour)
        write(root / kind / "p5.webp", colour)
    (root / "images/Thumbs.db").write_bytes(b"")
    _, remarks = prepare_set(root)
    (said,) = [remark for remark in remarks if "left out" in remark]
    assert "5 files, such as" in said


def test_a_list_without_a_background_is_told(grey, tmp_path):
    root = write_set(tmp_path, [grey] * 4, [regions(0, 1)] * 4, "liver\nspleen\n")
    _, remarks = prepare_set(root)
    assert "the first class, 'liver', is taken for the background" in remarks


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a_1", "a_01"), r"a_1\.png: slice 1 of 'a' is .*a_01\.png too"),
        (("a_1", "a_x"), r"a_x\.png: the name does not fit case_pattern"),
    ],
)
def test_slices_that_cannot_be_stacked_are_named(names, message, colour, tmp_path):
    for name in (*names, "b_1"):
        write(tmp_path / f"images/{name}.png", colour)
        write(tmp_path / f"masks/{name}.png", regions(0, 255))
    with pytest.raises(DataError, match=message):
        prepare_set(tmp_path, case_pattern=r"(?P<case>.+)_(?P<slice>\w+)")


def test_all_files_at_fault_are_named_at_once(colour, tmp_path):
    root = write_set(tmp_path, [colour] * 6, [regions(0, 255)] * 6)
    (root / "images/p0.png").write_bytes(b"damaged")
    write(root / "masks/p3.png", regions(0, 128, 255))
    write(root / "masks/p5.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError) as error:
        prepare_set(root)
    named = sorted(line.split(": ")[0] for line in str(error.value).splitlines())
    assert named == [str(root / f) for f in ("images/p0.png", "masks/p3.png", "masks/p5.png")]
    assert not any((root / ".prepared").rglob("*"))


def test_of_very_many_faults_the_first_are_named(colour, tmp_path):
    root = write_set(tmp_path, [colour] * 30, [regions(0, 255)] * 30)
    for path in (root / "images").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError) as error:
        prepare_set(root)
    first, last = str(error.value).splitlines()
    assert "damaged, or no picture" in first
    assert "; as for 9 others: " in first
    assert last == "(and perhaps others)"
    for path in (root / "masks").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no mask of that name.*; as for 29 others: .*, \.\.\.$"):
        prepare_set(root)


def test_one_picture_in_two_formats_is_named(colour, tmp_path):
    root = write_set(tmp_path, [colour] * 4, [regions(0, 255)] * 4)
    write(root / "images/p1.jpg", colour)
    with pytest.raises(DataError, match=r"p1\.png: two images of one name, also .*p1\.jpg; keep"):
        prepare_set(root)
