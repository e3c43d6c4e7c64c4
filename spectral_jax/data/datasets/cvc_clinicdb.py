"""CVC-ClinicDB polyps: `Original/1.tif`, `Ground Truth/1.tif`, ...; PNG and JPEG as well.

Frames of a video look alike, so that the 29 sequences are split, not the 612 frames: every fifth
from the third on is for testing, every tenth from the fifth on for validation.
"""

import bisect
from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner
from spectral_jax.data.volumes import DataError

# the last frame of each sequence, from the owners' table of frames
LAST_FRAMES = (
    *(25, 50, 67, 78, 103, 126, 151, 177, 199, 205, 227, 252, 277, 297, 317, 342, 363, 383, 408),
    *(428, 447, 466, 478, 503, 528, 546, 571, 591, 612),
)


def sequence(frame: int) -> int:
    """The number of a frame's sequence, from 1."""
    return bisect.bisect_left(LAST_FRAMES, frame) + 1


def read(root: Path) -> Found:
    """Finds the frames."""
    for folder in ("TIF", "PNG", "CVC-ClinicDB", "."):
        for images, masks in (("Original", "Ground Truth"), ("images", "masks")):
            if (root / folder / images).is_dir():
                return _read_frames(root / folder / images, root / folder / masks)
    raise files.missing_layout(root, "Original/*.tif and Ground Truth/*.tif", "images and masks")


def _read_frames(images: Path, masks: Path) -> Found:
    pattern = rf"(\d+)\.{files.PICTURE}"
    pairs = files.pair(files.find(images, pattern), files.find(masks, pattern))
    splits: dict[str, list[Case]] = {"train": [], "validation": [], "test": []}
    for frame, pair in sorted((int(name), pair) for name, pair in pairs.items()):
        if not 1 <= frame <= LAST_FRAMES[-1]:
            raise DataError(f"{pair[0]}: no frame {frame}; they are 1 ... {LAST_FRAMES[-1]}")
        number = sequence(frame)
        split = "test" if number % 5 == 3 else "validation" if number % 10 == 5 else "train"
        group = f"sequence_{number:02d}"
        splits[split].append(files.picture_case(f"frame_{frame:03d}", pair, group=group))
    return Found(splits, official=LAST_FRAMES[-1])


DATASET = Dataset(
    name="cvc_clinicdb",
    description="Polyps in frames of 29 colonoscopy videos.",
    modality="colonoscopy",
    channels=3,
    classes=("background", "polyp"),
    licence="research with citation",
    source="polyp.grand-challenge.org/CVCClinicDB: FOLDER/{Original,Ground Truth}/*.tif.",
    read=read,
    test="6 of 29 video sequences (ours)",
    partners=(
        Partner("kvasir_seg", {"polyp": "polyp"}, "hospital, endoscope, video against stills"),
    ),
)
