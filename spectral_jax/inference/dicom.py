"""DICOM series and pictures as hospitals send them, and segmentations written beside them.

A series is seen as the NIfTI file that dcm2niix makes of it: columns, rows from the last, slices
along their normal. Values are those after the rescaling that the files ask for; how a viewer should
show them (windows, white as 0) counts for pictures alone.

Reading needs pydicom, writing highdicom, compressed pixels gdcm: `pip install
pydicom highdicom python-gdcm`.
"""

import collections
import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import ImageColor

from spectral_jax.data import headers
from spectral_jax.data.geometry import Grid
from spectral_jax.data.pictures import in_8_bits
from spectral_jax.data.volumes import DataError, check_finite, named
from spectral_jax.files import written_whole

NO_IMAGES = {  # modalities of files that have no scan in them, though some have pixels
    *("SR", "PR", "KO", "REG", "FID", "DOC", "PLAN", "RWV", "ANN", "AU", "ECG", "HD", "SMR"),
    *("RTSTRUCT", "RTPLAN", "RTRECORD", "RTDOSE", "SEG", "M3D", "STL"),
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
BETWEEN_SCANS = (  # what differs where one series holds several scans of the same places
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "EchoTime", "EchoNumbers"),
    *("DiffusionBValue", "ImageType", "AcquisitionTime", "ContentTime", "InstanceNumber"),
)
NEEDED_IN_SEGMENTATIONS = (  # may be empty, but must be there; anonymising often removes them
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
UNEVEN = 0.1  # of the distance between slices: how far one may lie from its place


class Pixels(NamedTuple):
    """An image in DICOM, with what its segmentation refers to.

    Attributes:
      array: `[x, y, z]` of a series, `[height, width, channels]` of a picture.
      grid: where the voxels of a series lie; None for a picture.
      sides_mm: of a voxel along x, y and z, or of a pixel (1, height, width); None where unknown.
      modality: such as "CT".
      rescaled: whether the files say how stored values become those of the modality.
      sources: the files' contents, in the order of z.
    """

    array: Num[np.ndarray, "..."]
    grid: Grid | None
    sides_mm: tuple[float, float, float] | None
    modality: str
    rescaled: bool
    sources: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Slice:
    """A file of a series."""

    path: pathlib.Path
    dataset: Any

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        """The centre of the first pixel, in mm to the left, backwards and upwards."""
        return np.array(self.dataset.ImagePositionPatient, float)

    @property
    def directions(self) -> Float[np.ndarray, "2 3"]:
        """Along a row, and along a column."""
        return np.array(self.dataset.ImageOrientationPatient, float).reshape(2, 3)

    @property
    def height_mm(self) -> float:
        """Where the slice is along its normal."""
        return float(self.position @ np.cross(*self.directions))


def starts_as_dicom(path: pathlib.Path, *, preamble: bool = False) -> bool:
    """Whether a file begins as DICOM does: with its preamble, or at once with its first tags.

    With `preamble`, it must have one: other files may begin like the first tags by chance.
    """
    with path.open("rb") as file:
        start = file.read(132)
    group, element = (int.from_bytes(start[at : at + 2], "little") for at in (0, 2))
    bare = group in (2, 8) and element <= 0x18 and len(start) == 132
    return start[128:] == b"DICM" or (bare and not preamble)


def group_series(
    files: Sequence[pathlib.Path],
) -> tuple[list[list[pathlib.Path]], dict[pathlib.Path, str]]:
    """DICOM files by the series that they belong to, and those that hold no image.

    Those that cannot be read stand alone. Where folders repeat each other's places under one
    number, as after careless anonymising, each is a series. Screen captures beside other images,
    such as reports of dose, are none.

    Returns:
      The files of each series, and what each of the others is.
    """
    groups: dict[tuple[str, ...], list[pathlib.Path]] = {}
    captures: dict[tuple[str, ...], list[pathlib.Path]] = {}
    places: dict[pathlib.Path, str] = {}
    others: dict[pathlib.Path, str] = {}
    for path in files:
        try:
            header = read_file(path, pixels=False)
        except DataError:
            groups[(str(path),)] = [path]  # reading it as a case will tell what is wrong
            continue
        if kind := _no_image(header):
            others[path] = kind
            continue
        keys = [str(header.get(key, "")) for key in ("PatientID", "StudyInstanceUID")]
        series = str(header.get("SeriesInstanceUID", path.parent))
        into = captures if _is_capture(header) else groups
        into.setdefault((*keys, series), []).append(path)
        places[path] = str(header.get("ImagePositionPatient", path))
    if groups:
        others |= {path: "screen capture" for paths in captures.values() for path in paths}
    groups = groups or captures
    found: list[list[pathlib.Path]] = []
    for group in groups.values():
        folders: dict[pathlib.Path, list[pathlib.Path]] = {}
        for path in group:
            folders.setdefault(path.parent, []).append(path)
        by_folder = [{places.get(path, "") for path in paths} for paths in folders.values()]
        if sum(map(len, by_folder)) > len(set().union(*by_folder)):
            found += folders.values()
        else:
            found.append(group)
    return found, others


def _is_capture(header: Any) -> bool:
    kind = str(header.get("SOPClassUID", ""))
    return kind.startswith(SECONDARY_CAPTURE) and "ImagePositionPatient" not in header


def _no_image(header: Any) -> str:
    """What a file is that holds no image to segment; "" for images."""
    modality = str(header.get("Modality", ""))
    if "DirectoryRecordSequence" in header:
        return "DICOMDIR"
    if modality in NO_IMAGES or not {"Rows", "Columns"} <= set(header.dir()):
        return modality or header.get("SOPClassUID", "no image").name
    return ""


def read_file(path: pathlib.Path, *, pixels: bool = True) -> Any:
    """The contents of a file, with preamble or without; `pixels=False` leaves its pixels unread."""
    with named(path, "DICOM image"):
        pydicom = _pydicom()
        headers.check_deflated(path)
        dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
        headers.check_dicom(path, dataset)
        if not {"SOPClassUID", "Rows", "DirectoryRecordSequence"} & set(dataset.dir()):
            raise DataError(f"{path}: damaged, or no DICOM: none of DICOM's tags is in it")
        if "TransferSyntaxUID" not in dataset.file_meta:  # without preamble, as networks send it
            implicit, little = dataset.original_encoding
            uid = pydicom.uid
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = (
                uid.ImplicitVRLittleEndian if implicit else explicit
            )
    return dataset


def _pydicom():
    try:
        import pydicom
        import pydicom.errors
        import pydicom.uid
    except ImportError:
        raise DataError("DICOM needs pydicom: pip install pydicom") from None
    return pydicom


def read_pixels(files: Sequence[pathlib.Path]) -> Pixels:
    """Reads a series, or a picture.

    Raises:
      DataError: for what is damaged, no image, or no stack of even slices; it names the files.
    """
    slices = [Slice(path, read_file(path)) for path in files]
    for one in slices:
        if kind := _no_image(one.dataset):
            raise DataError(f"{one.path}: holds no image to segment, but {kind}")
        if "PixelData" not in one.dataset:
            raise DataError(f"{one.path}: damaged: it has a picture's size, and no pixels")
        if "MOSAIC" in (one.dataset.get("ImageType") or ()):
            raise DataError(
                f"{one.path}: a mosaic, with all slices of a volume in one picture; expected a "
                "file for each slice: convert the series to NIfTI (dcm2niix does)"
            )
        if int(one.dataset.get("NumberOfFrames") or 1) > 1:
            raise DataError(
                f"{one.path}: holds {one.dataset.NumberOfFrames} frames; expected a file for each "
                "slice"
            )
    placed = {"ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"}
    colour = slices[0].dataset.get("PhotometricInterpretation", "")[:10] not in (
        "MONOCHROME",
        "",
    )
    without = [one for one in slices if not placed <= set(one.dataset.dir())]
    if len(slices) == 1 and (without or colour):
        return _read_picture(slices[0])
    if colour:
        raise DataError(f"{files[0]}: one of {len(files)} colour slices; expected grey ones")
    if without:
        missing = sorted(placed - set(without[0].dataset.dir()))
        raise DataError(
            f"{without[0].path}: one of {len(files)} files of a series, without "
            f"{', '.join(missing)}: where it lies is not known; give pictures one by one"
        )
    return _read_stack(slices)


def _stored_values(one: Slice) -> Num[np.ndarray, "..."]:
    from pydicom import pixels

    try:
        return pixels.pixel_array(one.dataset)  # colour becomes RGB
    except RuntimeError as error:
        name = one.dataset.file_meta.TransferSyntaxUID.name
        if "decompress" not in str(error) and "plugin" not in str(error):
            raise
        # pydicom lets no other package read these
        extended = name.startswith("JPEG Extended") and one.dataset.get("BitsStored", 8) > 8
        package = "pylibjpeg pylibjpeg-libjpeg" if extended else "python-gdcm"
        raise DataError(
            f"{one.path}: pixels are compressed as {name}, and what is installed does not read it: "
            f"pip install {package} ({str(error).splitlines()[-1].strip()})"
        ) from error


def _values(one: Slice) -> Num[np.ndarray, "..."]:
    """Pixels in the units of the modality."""
    from pydicom import pixels

    with named(one.path, "DICOM image"):
        return pixels.apply_rescale(_stored_values(one), one.dataset)


def _is_rescaled(dataset: Any) -> bool:
    return "RescaleIntercept" in dataset or "ModalityLUTSequence" in dataset


def _read_stack(slices: Sequence[Slice]) -> Pixels:
    for one in slices:
        with named(one.path, "slice of a series"):
            _ = one.height_mm, [float(side) for side in one.dataset.PixelSpacing]
    _check_alike(slices)
    slices = sorted(slices, key=lambda one: one.height_mm)
    step_mm = _check_even(slices)
    first, last = slices[0], slices[-1]
    row, column = first.directions
    spacing = [float(side) for side in first.dataset.PixelSpacing]
    height = int(first.dataset.Rows)
    voxels = np.stack([np.asarray(_values(one), np.float32) for one in slices], axis=-1)
    if voxels.ndim != 3:
        raise DataError(f"{first.path}: pixels of {voxels.ndim} dimensions; expected grey slices")
    check_finite(voxels, first.path)
    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = -column * spacing[0]
    affine[:3, 2] = (
        (last.position - first.position) / (len(slices) - 1)
        if len(slices) > 1
        else np.cross(row, column) * step_mm
    )
    affine[:3, 3] = first.position + column * spacing[0] * (height - 1)
    affine = np.diag([-1.0, -1, 1, 1]) @ affine  # from left and backwards to right and forwards
    grid = Grid((voxels.shape[1], voxels.shape[0], voxels.shape[2]), affine)
    with named(first.path, "slice of a series"):
        grid.check()
    return Pixels(
        voxels.transpose(1, 0, 2)[:, ::-1],
        grid,
        (spacing[1], spacing[0], step_mm),
        str(first.dataset.get("Modality", "")),
        all(_is_rescaled(one.dataset) for one in slices),
        [one.dataset for one in slices],
    )


def _check_alike(slices: Sequence[Slice]) -> None:
    """Raises DataError unless all slices have one size and direction; names an odd one."""
    facts: dict[str, list[Any]] = {
        "size": [(int(one.dataset.Rows), int(one.dataset.Columns)) for one in slices],
        "PixelSpacing": [
            tuple(round(float(side), 4) for side in one.dataset.PixelSpacing) for one in slices
        ],
        "ImageOrientationPatient": [tuple(one.directions.ravel().round(3) + 0.0) for one in slices],
    }
    for name, values in facts.items():
        counts = collections.Counter(values)
        if len(counts) > 1:
            usual, rare = counts.most_common()[0][0], counts.most_common()[-1][0]
            path = slices[values.index(rare)].path
            raise DataError(
                f"{path}: {name} is {rare}, but {usual} in {counts[usual]} of {len(slices)} files "
                "of the series; expected slices of one kind: move the others (such as a localizer) "
                "to a folder of their own"
            )


def _check_even(slices: Sequence[Slice]) -> float:
    """The distance between sorted slices; DataError tells which are too many or missing."""
    heights = np.array([one.height_mm for one in slices])
    gaps = np.diff(heights)
    apart = gaps[gaps > 0.01]
    if len(slices) == 1:
        dataset = slices[0].dataset
        thickness = dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness")
        return abs(float(thickness or 0)) or 1.0
    if len(apart) < len(gaps):
        _tell_doubled(slices, gaps)
    step = float(np.median(apart))
    missing = np.rint(gaps / step).astype(int) - 1
    whole_steps = np.abs(gaps - (missing + 1) * step) < UNEVEN * step
    if missing.any() and missing.min() >= 0 and whole_steps.all():
        index = int(np.flatnonzero(missing)[0])
        others = int(np.count_nonzero(missing)) - 1
        some = f" (and {others} more gaps)" if others else ""
        raise DataError(
            f"{slices[index].path}: {missing[index]} missing slice{'s'[: missing[index] - 1]} "
            f"between this one, at {heights[index]:g} mm, and {slices[index + 1].path.name}, at "
            f"{heights[index + 1]:g} mm{some}; the {len(slices)} slices are otherwise {step:g} mm "
            "apart. Export the series again, or move the slices on one side to another folder"
        )
    even = np.linspace(heights[0], heights[-1], len(slices))
    index = int(np.abs(heights - even).argmax())
    step = float((heights[-1] - heights[0]) / (len(slices) - 1))
    if abs(heights[index] - even[index]) > UNEVEN * step:
        raise DataError(
            f"{slices[index].path}: slices are {gaps.min():g} to {gaps.max():g} mm apart; expected "
            f"even steps (this slice, at {heights[index]:g} mm, is farthest from its place). "
            "Resample the series to even slices"
        )
    normal = np.cross(*slices[0].directions)
    aside = (slices[-1].position - slices[0].position) - normal * (heights[-1] - heights[0])
    shift = float(np.linalg.norm(aside)) / (len(slices) - 1)
    if shift > UNEVEN * step:
        raise DataError(
            f"{slices[0].path}: each slice is shifted sideways by {shift:.3g} mm against the last, "
            "as under a tilted gantry; expected slices stacked along their normal. Resample the "
            "series (dcm2niix does)"
        )
    return step


def _tell_doubled(slices: Sequence[Slice], gaps: np.ndarray) -> None:
    """Raises DataError: some places are taken several times."""
    index = int(np.flatnonzero(gaps <= 0.01)[0])
    one, other = slices[index], slices[index + 1]
    places = 1 + int(np.count_nonzero(gaps > 0.01))
    differing = [
        f"{name} ({one.dataset.get(name)}, {other.dataset.get(name)})"
        for name in BETWEEN_SCANS
        if one.dataset.get(name) != other.dataset.get(name)
    ]
    same = one.dataset.get("SOPInstanceUID") == other.dataset.get("SOPInstanceUID")
    if same and one.dataset.get("SOPInstanceUID"):
        advice = "they are copies of one image: remove one"
    elif differing:
        advice = f"they differ in {', '.join(differing[:3])}: give each scan a folder of its own"
    else:
        advice = "remove one, or give each scan a folder of its own"
    raise DataError(
        f"{one.path}: {len(slices)} files at {places} places: at {one.height_mm:g} mm lies "
        f"{other.path.name} too; {advice}"
    )


def _read_picture(one: Slice) -> Pixels:
    """A radiograph, photograph or coloured slice, as it is displayed."""
    from pydicom import pixels

    dataset = one.dataset
    with named(one.path, "DICOM image"):
        image = _stored_values(one)
        stored = int(dataset.get("BitsStored", 0))
        interpretation = dataset.PhotometricInterpretation
        if interpretation == "PALETTE COLOR":
            # the entries' range is that of their type
            image = in_8_bits(pixels.apply_color_lut(image, dataset))
        elif image.ndim == 2:
            values = pixels.apply_rescale(image, dataset)
            if stored not in (8, 16) or np.any(values != image):
                image = values.astype(np.float32)  # no picture whose type tells its range
            if interpretation == "MONOCHROME1":  # 0 is white
                image = _inverted(image, values)
        spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
        sides_mm = spacing and (1.0, float(spacing[0]), float(spacing[1]))
    height, width = image.shape[:2]
    return Pixels(
        image.reshape(height, width, -1),
        None,
        sides_mm or None,
        str(dataset.get("Modality", "")),
        _is_rescaled(dataset),
        [dataset],
    )


def _inverted(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    if image.dtype == np.float32:
        return np.float32(values.max()) + np.float32(values.min()) - image
    return np.iinfo(image.dtype).max - image


def _mend_for_segmentation(source: Any) -> None:
    """Empties what a segmentation must name, where it is missing or, as "ANONYMISED", no value."""
    from pydicom import charset, valuerep

    for name in NEEDED_IN_SEGMENTATIONS:
        if name not in source:
            setattr(source, name, "")
    for name in ("StudyDate", "PatientBirthDate", "StudyTime"):
        kind = valuerep.TM if name == "StudyTime" else valuerep.DA
        try:
            kind(source.get(name) or None)
        except ValueError:
            setattr(source, name, "")
    if source.PatientSex not in ("M", "F", "O", ""):
        source.PatientSex = ""
    sets = source.get("SpecificCharacterSet") or []
    if any(
        name not in charset.python_encoding for name in ([sets] if isinstance(sets, str) else sets)
    ):
        source.SpecificCharacterSet = "ISO_IR 192"  # texts are decoded by now


def write_segmentation(
    sources: Sequence[Any],
    labels: UInt8[np.ndarray, "slices rows columns"],
    classes: Sequence[str],
    colors: Sequence[str],
    target: pathlib.Path,
) -> None:
    """Writes a DICOM segmentation, a segment for each class but the background.

    What anonymising removed from the sources, and a segmentation must name, stays empty.

    Raises:
      DataError: where the sources cannot be those of a segmentation.
    """
    try:
        import highdicom
    except ImportError:
        raise DataError(
            f"{target}: DICOM segmentations need highdicom: pip install highdicom"
        ) from None
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    import spectral_jax

    # names of classes are free text, for which there are no finer codes
    body_structure = Code("123037004", "SCT", "Body structure")
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=body_structure,
            segmented_property_type=body_structure,
            display_color=highdicom.color.CIELabColor.from_rgb(*ImageColor.getrgb(color)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name="spectral_jax",
                version=spectral_jax.__version__,
                family=Code("123110", "DCM", "Artificial Intelligence"),
            ),
        )
        for number, (name, color) in enumerate(zip(classes[1:], colors[1:], strict=True), start=1)
    ]
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for source in sources:
        _mend_for_segmentation(source)
        if not source.get("StudyInstanceUID"):
            source.StudyInstanceUID = study
        if not source.get("SeriesInstanceUID"):
            source.SeriesInstanceUID = series
        if "ImagePositionPatient" in source and not source.get("FrameOfReferenceUID"):
            source.FrameOfReferenceUID = frame
    with named(target, "DICOM segmentation of these files"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty segmentations, and of the sources' own values
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=labels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=100,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="spectral_jax",
            manufacturer_model_name="spectral_jax",
            software_versions=spectral_jax.__version__,
            device_serial_number="0",
        )
        with written_whole(target) as temporary:
            segmentation.save_as(temporary)
