"""Large inputs: a picture in tiles beside the bare network, and how start-up grows with files.

python -m experiments.benchmarks.scale --out=DIR
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.benchmarks import timing
from spectral_jax.data.datasets import Case, Dataset, Found, Loaded, prepare
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.inference.cases import Prediction, find_sources, predict_sources
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.build import make_model
from spectral_jax.training.config import parse_config

BATCH_SIZE = 8
MEASURED = """
import json, sys, time
from experiments.benchmarks.scale import peak_mebibytes
{imports}
before, start = peak_mebibytes(), time.perf_counter()
{work}
print(json.dumps([time.perf_counter() - start, peak_mebibytes() - before]))
"""


def peak_mebibytes() -> float:
    """The most memory that this process has had (Linux)."""
    # getrusage counts what the parent had when it started this one
    (line,) = (
        line
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def tiles(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    """From a file to class numbers, in tiles, beside the network alone on as many pixels."""
    size, side, widths = (32, 200, (4, 8)) if quick else (224, 3000, (16, 32, 64, 128, 256))
    classes = ("background", "foreground")
    info = DatasetInfo("folder", "any", classes, ("#000000", "#E69F00"), 3, "identity")
    config = parse_config(
        {"data": {"image_size": size}, "model": {"name": "unet", "options": {"widths": widths}}}
    )
    model = make_model(config, info.labels)
    variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False)
    predictor = Predictor(TrainedModel(config, info, model, variables, 0), BATCH_SIZE, tiles=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    shape = (BATCH_SIZE, size, size, 3)
    batches = -(-(side**2) // (BATCH_SIZE * size**2))
    images = np.resize(pixels, (batches, *shape))

    def bare_network() -> None:
        for batch in images:
            predictor.network(batch).block_until_ready()

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "a.png"
        Image.fromarray(pixels).save(file, compress_level=1)
        sources = find_sources([file], pathlib.Path(folder) / "out")

        def in_tiles() -> None:
            (result,) = predict_sources(predictor, info, sources)
            assert isinstance(result, Prediction), result
            result.scan.write_labels(result.labels, file.with_name("out"), classes, info.colors)

        what = f"{side} x {side} pixels, network of {size} px"
        sides = {"the network alone": bare_network, "from file to file, in tiles": in_tiles}
        before = peak_mebibytes()
        yield timing.compare(what, sides, min(repetitions, 3), target="at most 2")
        yield timing.fact(f"{what}: memory of both", peak_mebibytes() - before, "MiB")


def in_process(imports: str, work: str, *arguments: object) -> tuple[float, float]:
    """Seconds and MiB that `work` takes in a new process, after its imports."""
    code = MEASURED.format(imports=imports, work=work)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, mebibytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, mebibytes


def growth(
    what: str, counts: tuple[int, int], make: Callable[[pathlib.Path, int], None], *code: str
) -> Iterator[timing.Result]:
    """Time and memory for two counts of files, lines or slices, the second twice the first."""
    figures = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make(pathlib.Path(folder), count)
            figures.append(in_process(*code, folder))
    (half, _), (seconds, mebibytes) = figures
    yield timing.fact(f"{counts[1]} {what}", seconds, "s")
    yield timing.fact(f"{counts[1]} {what}: memory", mebibytes, "MiB")
    yield timing.fact(f"{counts[1]} {what}: time over that of half", seconds / half, "", "about 2")


def make_slices(folder: pathlib.Path, count: int) -> None:
    """A prepared set of volumes of 100 slices, 64 x 64."""
    slices = np.random.default_rng(0).integers(0, 256, (100, 64, 64, 1)).astype(np.uint8)
    loaded = Loaded(slices, (slices[..., 0] > 127).astype(np.uint8))
    here = (pathlib.Path(__file__),)
    cases = [Case(f"case{n}", here, lambda: loaded) for n in range(count // 100)]
    made_up = Dataset(
        name="made_up",
        description="",
        modality="",
        channels=1,
        classes=("background", "foreground"),
        licence="",
        source="",
        read=lambda root: Found({"train": cases[1:], "test": cases[:1]}),
        needs_root=False,
    )
    prepare(made_up, root=None, data_dir=folder, validation=0)


def make_pictures(folder: pathlib.Path, count: int) -> None:
    for number in range(count):
        Image.new("L", (64, 64), number % 256).save(folder / f"{number}.png")


def make_series(folder: pathlib.Path, count: int) -> None:
    """DICOM series of 200 slices, 64 x 64."""
    import pydicom

    for number in range(count):
        dataset = pydicom.Dataset()
        dataset.SOPClassUID = pydicom.uid.MRImageStorage
        dataset.SOPInstanceUID = f"1.2.{number}"
        dataset.SeriesInstanceUID = f"1.3.{number // 200}"
        dataset.Modality = "MR"
        dataset.Rows = dataset.Columns = 64
        dataset.SamplesPerPixel, dataset.BitsAllocated = 1, 16
        dataset.PixelData = bytes(2 * 64 * 64)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        place = folder / f"series{number // 200}"
        place.mkdir(exist_ok=True)
        dataset.save_as(place / f"{number}.dcm", enforce_file_format=True)


def make_metrics(folder: pathlib.Path, count: int) -> None:
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, count + 1):
            line = {"kind": "train", "step": step, "epoch": step / 9, "loss": 1 / step}
            line |= {"dice": 0.123456789, "cross_entropy": 0.123456789, "learning_rate": 1e-3}
            file.write(json.dumps(line) + "\n")


FIND = (
    "import pathlib\nfrom spectral_jax.inference.cases import find_sources",
    "find_sources([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[1]) / 'out')",
)
OPEN_SPLIT = (
    "import pathlib\nfrom spectral_jax.data.sources import Split",
    "Split(next(pathlib.Path(sys.argv[1]).glob('made_up/*/*')), 'train')",
)
RESUME = (
    "from spectral_jax.training.logging import RunLog",
    "log = RunLog(sys.argv[1], 10**9, 10**9); log.open(); log.__exit__(None)",
)
REPORT = ("from spectral_jax.reporting import write_report", "write_report(sys.argv[1])")


def measure(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    yield from tiles(quick, repetitions)
    shrink = 100 if quick else 1
    for what, count, make, code in (
        ("slices: opening a prepared split", 20_000, make_slices, OPEN_SPLIT),
        ("pictures: finding them", 2_000, make_pictures, FIND),
        ("DICOM files: finding their series", 4_000, make_series, FIND),
        ("lines of metrics: resuming", 1_000_000, make_metrics, RESUME),
        ("lines of metrics: report", 1_000_000, make_metrics, REPORT),
    ):
        counts = max(200, count // 2 // shrink), max(400, count // shrink)
        yield from growth(what, counts, make, *code)


if __name__ == "__main__":
    timing.run("scale", measure)
