"""The page of one run: `report.html`, self-contained, made from the files of its folder."""

import contextlib
import io
import json
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from etils import epath

from spectral_jax.files import read_json, write_text
from spectral_jax.reporting import charts, overlays, tables

Line = dict[str, Any]

REPORT_FILE = "report.html"
EVALUATE_AGAIN = "delete it and run spectral-jax evaluate again"
# what reading an evaluation with missing or damaged parts raises
DAMAGE = (
    *(LookupError, TypeError, AttributeError, ValueError, ArithmeticError),
    *(EOFError, zipfile.BadZipFile, zlib.error),
)

# Keys of a training line that are not terms of the loss; every other one is.
BOOKKEEPING = ("kind", "step", "epoch")
THROUGHPUT = ("images_per_second", "step_seconds", "data_wait_seconds")
SCHEDULES = ("learning_rate", "spectral_weight")
OPTIMISATION = (*SCHEDULES, "gradient_norm")
FEWEST_POINTS = 2  # of a curve: one alone is a sentence
LOGARITHMIC_FROM = 30  # times between the smallest and the largest value
# For classes whose colour no evaluation tells: Okabe and Ito's palette.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


def write_report(workdir: str | os.PathLike[str]) -> epath.Path:
    """Writes `report.html` about the run in `workdir` and returns its path.

    What is not there yet is left out: the page of a run that has just begun has a configuration
    and no results. All pictures are inside the page, which makes no network request; the scores of
    each evaluation are written beside it as CSV and LaTeX.

    Args:
      workdir: the run's folder, with any of `config.json`, `versions.json`, `metrics.jsonl`, and
        `evaluation/NAME.json` beside `evaluation/NAME-examples.npz`.

    Raises:
      ValueError: where `workdir` has none of these.
    """
    folder = epath.Path(workdir)
    if not folder.is_absolute():  # gs:// is; `resolve` would take it for the name of a folder here
        folder = folder.resolve()
    lines, unreadable_lines = read_metrics(folder / "metrics.jsonl")
    evaluation_files = sorted(folder.glob("evaluation/*.json"))
    # those of the data that it was trained on come first
    evaluations = sorted(map(_evaluation, evaluation_files), key=lambda of: of["elsewhere"])
    config = read_if_there(folder / "config.json", "restore it from a copy")
    if not (lines or evaluations or config):
        raise ValueError(
            f"{folder} is not a run's folder: it has neither config.json nor metrics.jsonl "
            "nor evaluation/*.json"
        )
    colors = {name: color for e in evaluations for name, color in e["foreground"].items()}
    training = [line for line in lines if line["kind"] == "train"]
    validation = [
        line for line in lines if line["kind"] == "validation" and is_finite(line, "dice")
    ]
    versions = read_if_there(folder / "versions.json", "delete it")
    data = read_if_there(folder / "dataset.json", "restore it from a copy")
    try:
        subtitle, facts = _subtitle(config), _facts(data, versions, training)
    except DAMAGE as error:
        raise ValueError(
            f"{folder}: config.json, versions.json or dataset.json is damaged ({error}); restore "
            "it from a copy"
        ) from error
    curves, once = _learning_curves(training, validation)
    page = _render(
        [path.name for path in evaluation_files],
        name=folder.name,
        subtitle=subtitle,
        facts=facts,
        config=[*flatten(config), *_earlier_settings(folder / "changes.json")],
        versions=versions,
        evaluations=evaluations,
        fewest_units=tables.FEWEST_UNITS,
        training=training,
        curves=curves,
        once=once,
        throughput={key: _median(training, key) for key in THROUGHPUT},
        validation=_validation(validation, colors),
        unreadable_lines=unreadable_lines,
    )
    for evaluation in evaluations:
        for file, text in evaluation["files"].items():
            write_text(folder / file, text)
    path = folder / REPORT_FILE
    write_text(path, page)
    return path


def _render(evaluation_files: Sequence[str], **facts: Any) -> str:
    try:
        return get_template("run_page.html").render(facts)
    except (*DAMAGE, jinja2.UndefinedError) as error:  # a value of a type that has no place there
        files = ", ".join(("config.json", "versions.json", "metrics.jsonl", *evaluation_files))
        raise ValueError(
            f"{facts['name']}: one of {files} is damaged ({error}); those of an evaluation can be "
            "made again: delete them and run spectral-jax evaluate"
        ) from error


def get_template(name: str) -> jinja2.Template:
    """A page to be filled in, which escapes what it is given and knows no undefined names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spectral_jax", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "duration": _duration}
    return environment.get_template(name)


def read_metrics(path: epath.Path) -> tuple[list[Line], int]:
    """Reads `metrics.jsonl`: its lines in order of step, and how many could not be read.

    A run that was killed and resumed may leave a torn line, and repeats the steps since its last
    checkpoint: of two lines about one step the later one counts.
    """
    lines: dict[tuple[str, int], Line] = {}
    unreadable = 0
    with path.open("rb") if path.exists() else contextlib.nullcontext(()) as file:
        for text in file:
            try:
                line = json.loads(text, object_pairs_hook=_with_shared_names)
                lines[line["kind"], line["step"] + 0] = line
            except (ValueError, KeyError, TypeError, RecursionError):
                unreadable += 1
    return sorted(lines.values(), key=lambda line: line["step"]), unreadable


def _with_shared_names(pairs: Sequence[tuple[str, Any]]) -> Line:
    """Names kept once, and not for each of what may be a million lines."""
    return {sys.intern(name): value for name, value in pairs}


def read_if_there(path: epath.Path, fix: str) -> dict[str, Any]:
    """What a JSON file says; nothing if there is none."""
    return read_json(path, fix) if path.exists() else {}


def _earlier_settings(path: epath.Path) -> Iterator[tuple[str, str]]:
    """What settings were before a run was resumed with others, by name and step."""
    for change in read_if_there(path, "delete it").get("changes", ()):
        for key, values in change.items():
            if key != "step":
                yield f"{key} until step {change['step']}", json.dumps(values[0])


def is_finite(line: Mapping[str, Any], key: str) -> bool:
    """Whether a line has a number under `key`."""
    value = line.get(key)
    return isinstance(value, int | float) and math.isfinite(value)


def _subtitle(config: Mapping[str, Any]) -> list[str]:
    """Data set, network, loss with the weight of its spectral part, and optimiser."""
    parts = []
    for section in ("data", "model", "objective", "optim"):
        part = config.get(section)
        if isinstance(part, dict):
            text = _loss(part) if section == "objective" else part.get("name")
            parts += [text] if isinstance(text, str) else []
    return parts


def _loss(objective: Mapping[str, Any]) -> str | None:
    spatial, spectral = objective.get("spatial"), objective.get("spectral", "none")
    if isinstance(spatial, dict):
        spatial = " + ".join(spatial)
    if not isinstance(spatial, str) or spectral in ("none", None):
        return spatial
    name = spectral if isinstance(spectral, str) else "spectral correlation"
    return f"{spatial} + {objective.get('weight', 1):g} \N{MULTIPLICATION SIGN} {name}"


def _facts(
    data: Mapping[str, Any], versions: Mapping[str, Any], training: Sequence[Line]
) -> list[str]:
    """What a run was trained on, how long, and on what."""
    facts = []
    for split, of in data.get("sizes", {}).items():
        words = {"train": "trained on", "validation": "validated on"}.get(split)
        if words:
            cases, records = of["cases"], of["records"]
            slices = f" ({records:,} slices)" if records > cases else ""
            facts.append(f"{words} {cases:,} case{'' if cases == 1 else 's'}{slices}")
    seconds, step = 0.0, 0
    for line in training:
        if is_finite(line, "step_seconds"):
            seconds += (line["step"] - step) * line["step_seconds"]
        step = line["step"]
    if seconds:
        facts.append(f"{step:,} steps in {_duration(seconds)}")
    if isinstance(versions.get("devices"), str):
        facts.append(versions["devices"])
    return facts


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _median(lines: Sequence[Line], key: str) -> float | None:
    values = [line[key] for line in lines if is_finite(line, key)]
    return float(np.median(values)) if values else None


def _learning_curves(
    training: Sequence[Line], validation: Sequence[Line]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Curves of what was logged several times, and what was logged once."""
    keys = dict.fromkeys(key for line in training for key in line)
    terms = [key for key in keys if key not in BOOKKEEPING + THROUGHPUT + OPTIMISATION]
    curves: list[dict[str, Any]] = []
    once: dict[str, float] = {}
    for key in terms + [key for key in OPTIMISATION if key in keys]:
        lines = [line for line in training if is_finite(line, key)]
        values = [line[key] for line in lines]
        validated = [line for line in validation if key == "loss" and is_finite(line, key)]
        if len(lines) < FEWEST_POINTS:
            once |= {key.replace("_", " "): value for value in values}
        else:
            title = key.replace("_", " ") + (" term" if key in terms and key != "loss" else "")
            svg = charts.curve(
                [line["step"] for line in lines],
                values,
                alt=f"Curve of {title} over training steps",
                noisy=key not in SCHEDULES,
                logarithmic=key == "gradient_norm"
                and max(values) > LOGARITHMIC_FROM * min(values) > 0,
                beside=([v["step"] for v in validated], [v[key] for v in validated]),
            )
            lines_of = {"training": "var(--accent)", "validation": "currentColor"}
            curves.append({"title": title, "svg": svg, "legend": lines_of if validated else {}})
    return curves, once


def _validation(validation: Sequence[Line], colors: Mapping[str, str]) -> dict[str, Any] | None:
    if not validation:
        return None
    best = max(validation, key=lambda line: line["dice"])
    if len(validation) < FEWEST_POINTS:
        return {"svg": None, "best": best, "legend": {}}
    keys = dict.fromkeys(key for line in validation for key in line if key.startswith("dice/"))
    by_class = {}
    for index, key in enumerate(keys):
        name = key.removeprefix("dice/")
        values = [line[key] if is_finite(line, key) else math.nan for line in validation]
        by_class[name] = values, colors.get(name, PALETTE[index % len(PALETTE)])
    svg = charts.curves_by_class(
        [line["step"] for line in validation],
        [line["dice"] for line in validation],
        by_class,
        alt="Curves of validation Dice over training steps",
    )
    legend = {"mean": "currentColor"} | {name: color for name, (_, color) in by_class.items()}
    return {"svg": svg, "best": best, "legend": legend}


def _evaluation(path: epath.Path) -> dict[str, Any]:
    evaluation = read_json(path, EVALUATE_AGAIN)
    try:
        return _describe_evaluation(path, evaluation)
    except DAMAGE as error:
        raise ValueError(
            f"{path}, or the examples beside it, cannot be used ({type(error).__name__}: {error}): "
            f"{EVALUATE_AGAIN}"
        ) from error


def _describe_evaluation(path: epath.Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    classes, colors = evaluation["classes"], evaluation["colors"]
    foreground = dict(zip(classes[1:], colors[1:], strict=True))
    dice = {
        name: (
            [c["dice"] for c in evaluation["cases"] if c["class"] == name and is_finite(c, "dice")],
            color,
        )
        for name, color in foreground.items()
    }
    kinds_of_error = 3 if len(foreground) > 1 else 2
    rows, names = evaluation["cases"], [*foreground]
    metrics = [metric for metric in tables.COLUMNS if metric in evaluation["summary"]]
    intervals = {metric: tables.bootstrap(rows, names, metric) for metric in metrics}
    files = {
        f"{path.parent.name}/{path.stem}-classes.csv": tables.classes_csv(evaluation, intervals),
        f"{path.parent.name}/{path.stem}-classes.tex": tables.classes_latex(evaluation, intervals),
        f"{path.parent.name}/{path.stem}-cases.csv": tables.cases_csv(rows),
    }
    examples = []
    arrays_path = path.with_name(f"{path.stem}-examples.npz")
    if arrays_path.exists():
        with np.load(io.BytesIO(arrays_path.read_bytes())) as arrays:
            examples = [
                example
                | {
                    "id": f"{path.stem}-{example['key']}",
                    "pictures": _pictures(arrays, example["key"], colors, bool(example["rank"])),
                }
                for example in evaluation["examples"]
            ]
    return (
        {"nsd_tolerance": None, "threshold": None, "largest_component": ()}
        | evaluation
        | {
            "anchor": path.stem,
            "elsewhere": evaluation.get("trained_on", evaluation["dataset"])
            != evaluation["dataset"],
            "foreground": foreground,
            "case_count": len({case["case"] for case in evaluation["cases"]}),
            "distribution": _distribution(dice),
            "units": tables.count_units(rows),
            "intervals": intervals,
            "by_case": tables.by_case(rows, names),
            "files": files,
            "examples": [example for example in examples if example["rank"]],
            "others": [example for example in examples if not example["rank"]],
            "picture_of": {example["case"]: example["id"] for example in examples},
            "error_legend": dict(list(overlays.ERROR_COLORS.items())[:kinds_of_error]),
        }
    )


def _distribution(dice: Mapping[str, tuple[Sequence[float], str]]) -> Any:
    if not any(values for values, _ in dice.values()):
        return None
    return charts.distribution(dice, alt="Dice of every case, for each class")


def _pictures(
    arrays: Mapping[str, np.ndarray], key: str, colors: Sequence[str], large: bool
) -> dict[str, str]:
    """Image, truth, prediction and errors of a slice; small ones without the bare image."""
    image, truth, prediction = (
        arrays[f"{key}_{part}"] for part in ("image", "label", "prediction")
    )
    size = overlays.page_size(image.shape, overlays.PAGE_PIXELS if large else overlays.SMALL_PIXELS)
    pictures = {"Image": overlays.draw_image(image, size)} if large else {}
    pictures |= {
        "Truth": overlays.draw_labels(image, truth, colors, size),
        "Prediction": overlays.draw_labels(image, prediction, colors, size),
        "Errors": overlays.draw_errors(image, truth, prediction, size),
    }
    return {title: overlays.data_uri(picture) for title, picture in pictures.items()}


def _number(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
