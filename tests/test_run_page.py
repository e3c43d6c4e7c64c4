"""The report of a run is one readable page, whatever the run's folder holds so far."""

import html.parser
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

from spectral_jax.data.datasets.dataset import COLORS
from spectral_jax.metrics import score_case, summarise
from spectral_jax.reporting import overlays, write_report
from spectral_jax.reporting.run_page import PALETTE, read_metrics

HOSTILE = '<script>alert("x")</script>'
CLASSES = ["background", "left ventricle", HOSTILE]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """The text, tags and attributes of a page, whose tags must close in order."""

    def __init__(self, path):
        super().__init__()
        self.text, self.open, self.tags = "", [], []
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += " " + data

    def attributes(self, *names):
        return [attrs[name] for _, attrs in self.tags for name in names if name in attrs]


def without_nan(value):
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def write_evaluation(folder, rng):
    folder.mkdir()
    image = rng.integers(0, 255, (24, 20), np.uint8)
    cases, arrays = [], {}
    for case in range(3):
        truth = np.zeros((24, 20), np.uint8)
        truth[4 : 12 + case, 4:12] = 1
        if case:
            truth[16:20, 6:14] = 2
        prediction = np.roll(np.where(truth == 2, 0, truth), 1, axis=1) if case < 2 else truth
        cases += [
            {"case": f"case {HOSTILE} {case}", "class": name} | row
            for name, row in zip(CLASSES[1:], score_case(prediction, truth, 3), strict=True)
        ]
        arrays |= {f"{case}_image": image, f"{case}_label": truth, f"{case}_prediction": prediction}
    summary, by_class = summarise(cases)
    evaluation = {
        "trained_on": "hearts",
        "dataset": "hearts",
        "split": "test",
        "classes": CLASSES,
        "colors": ["#000000", "#0072b2", "#d55e00"],
        "checkpoint": {"name": "best", "step": 4200},
        "distance_unit": "px",
        "cases": [without_nan(row) for row in cases],
        "summary": without_nan(summary),
        "by_class": without_nan(by_class),
        "examples": [
            {"rank": "worst", "case": cases[0]["case"], "slice": 5, "dice": 0.8, "key": "0"},
            {"rank": "best", "case": cases[-1]["case"], "slice": None, "dice": 1.0, "key": "2"},
            {"rank": None, "case": cases[2]["case"], "slice": 1, "dice": 0.9, "key": "1"},
        ],
        "wall_seconds": 3.2,
    }
    (folder / "hearts-test.json").write_text(json.dumps(evaluation))
    np.savez(folder / "hearts-test-examples.npz", **arrays)


@pytest.fixture
def run(tmp_path, rng):
    workdir = tmp_path / "a run & more"
    workdir.mkdir()
    lines = []
    for step in range(10, 210, 10):
        lines.append(
            {"kind": "train", "step": step, "epoch": step / 100, "loss": 1 / step}
            | {"dice": 0.9 / step, "wavelet": 0.1 / step, "learning_rate": 1e-3}
            | {"gradient_norm": 2.0, "images_per_second": 40.0, "step_seconds": 0.2}
            | {"data_wait_seconds": 0.004}
        )
    for step in (100, 200):
        lines.append({"kind": "validation", "step": step, "dice": 0.6 + step / 1000})
        lines[-1] |= {f"dice/{CLASSES[1]}": 0.7, f"dice/{CLASSES[2]}": None}
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "tr')
    config = {"model": {"name": "unet", "widths": [8, 16]}, "train": {"note": HOSTILE, "ema": None}}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "versions.json").write_text(json.dumps({"jax": "0.10.2", "revision": "c0ffee"}))
    write_evaluation(workdir / "evaluation", rng)
    return workdir


def test_page_holds_everything_and_asks_for_nothing(run):
    path = run / "report.html"
    assert str(write_report(run)) == str(path)
    page = Page(path)
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for target in page.attributes("href", "xlink:href"):
        beside = target.startswith("evaluation/") and (run / target).is_file()
        assert beside or target.startswith("data:image/") or target.removeprefix("#") in ids
    assert "@import" not in path.read_text()
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    pictures = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(pictures) == 7
    assert len(page.attributes("src")) == 11  # two large ones, and a small one without the image
    assert all(picture["aria-label"] for picture in pictures)
    assert path.stat().st_size < 1e6


def test_numbers_come_with_their_counts(run):
    page = Page(write_report(run))
    summary = json.loads((run / "evaluation/hearts-test.json").read_text())["summary"]
    mean = f"{summary['dice']['mean']:.3f}"
    assert f"{mean} mean foreground Dice on the test split of hearts: 5 values" in page.text
    assert "1 undefined from 3 cases, with the best checkpoint of step 4,200" in page.text
    assert "1 case, 2 undefined" in page.text  # precision of the class predicted once
    assert "HD95 (px)" in page.text
    assert "40.0 images per second, 200 ms a step, 4 ms of waiting for data" in page.text
    assert "best 0.800 at step 200" in page.text
    assert "1 unreadable line of metrics.jsonl" in page.text


def test_terms_and_settings_are_found_whatever_their_names(run):
    text = Page(write_report(run)).text
    for words in ("wavelet term", "gradient norm", "model.widths [8, 16]", "train.ema null"):
        assert words in text
    assert "c0ffee" in text


def test_names_are_escaped(run):
    page = Page(write_report(run))
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1  # ours
    # a class: three tables, three legends, a chart; three cases and their examples; a setting
    assert page.text.count(HOSTILE) == 3 + 3 + 1 + 3 + 3 + 1
    assert any(HOSTILE in alt for alt in page.attributes("alt"))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("evaluation", "This run has not been evaluated. Its best validation Dice so far is 0.800"),
        ("evaluation/hearts-test-examples.npz", "Dice of every case"),
        ("metrics.jsonl", "mean foreground Dice"),
        ("config.json", "Versions"),
        ("versions.json", "Configuration"),
    ],
)
def test_missing_parts_are_left_out(run, missing, words):
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert words in Page(write_report(run)).text


def test_run_that_has_just_begun(run):
    shutil.rmtree(run / "evaluation")
    first = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(first + "\n")
    text = Page(write_report(run)).text
    assert "This run has not been evaluated." in text
    assert "validation" not in text


def test_class_without_any_defined_value(run):
    path = run / "evaluation/hearts-test.json"
    evaluation = json.loads(path.read_text())
    for case in evaluation["cases"]:
        case["dice"] = None
    evaluation["summary"]["dice"] = {"mean": None, "count": 0, "undefined": 6}
    path.write_text(json.dumps(evaluation))
    text = Page(write_report(run)).text
    assert "undefined mean foreground Dice" in text
    assert "0 values, 6 undefined" in text


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is not a run's folder"):
        write_report(tmp_path)


def test_damaged_file_is_named(run):
    (run / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        write_report(run)


def test_later_line_about_a_step_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [(1, 0.5), (2, 0.4), (3, 0.3), (2, 0.2)]
    path.write_text(
        "\n".join(json.dumps({"kind": "train", "step": s, "loss": v}) for s, v in lines)
    )
    read, unreadable = read_metrics(path)
    assert [(line["step"], line["loss"]) for line in read] == [(1, 0.5), (2, 0.2), (3, 0.3)]
    assert unreadable == 0


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_errors_have_their_colours(channels):
    truth = np.repeat(np.uint8([[0, 1, 1, 0, 2]]), 5, axis=0)
    prediction = np.repeat(np.uint8([[0, 1, 0, 1, 1]]), 5, axis=0)
    picture = overlays.draw_errors(np.zeros((5, 5, *channels), np.uint8), truth, prediction)
    scale = len(picture) // 5
    centres = picture[scale // 2, scale // 2 :: scale].astype(int)
    colors = [overlays.ImageColor.getrgb(color) for color in overlays.ERROR_COLORS.values()]
    assert (centres[:2] == 0).all()
    np.testing.assert_allclose(centres[2:], 0.85 * np.array(colors), atol=1)


@pytest.mark.parametrize("shape", [(30, 20), (1500, 900)])
def test_pictures_have_the_size_of_the_page(shape):
    picture = overlays.draw_image(np.zeros(shape, np.uint8))
    assert overlays.PAGE_PIXELS / 1.5 < max(picture.shape) < overlays.PAGE_PIXELS * 1.5
    assert picture.shape[0] / picture.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.01)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((30, 20), (683, 1024)), ((900, 1500), (1500, 900)), ((9000, 900, 3), (410, 4096))],
)
def test_a_picture_of_its_own_fills_a_screen(shape, size):
    assert overlays.screen_size(shape) == size
    label = np.zeros(shape[:2], np.uint8)
    label[: shape[0] // 2] = 1
    picture = overlays.draw_labels(np.zeros(shape, np.uint8), label, ("#000000", "#ff0000"), size)
    assert picture.shape == (*size[::-1], 3)
    assert (picture[size[1] // 4, size[0] // 2] == (89, 0, 0)).all()  # 0.35 of the colour
    assert not picture[3 * size[1] // 4 :].any()


def test_errors_have_colours_that_no_class_has():
    def rgb(color):
        return np.array(overlays.ImageColor.getrgb(color))

    for error in overlays.ERROR_COLORS.values():
        for of_class in (*COLORS, *PALETTE):
            assert np.abs(rgb(error) - rgb(of_class)).max() >= 80, (error, of_class)


def test_noise_fits_into_a_picture():
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    assert overlays.data_uri(noise).startswith("data:image/jpeg;base64,")


def test_reporting_needs_no_jax():
    code = "import sys, spectral_jax.reporting; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
