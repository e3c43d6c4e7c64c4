"""Prepares a data set from its raw files; training does this by itself if it is not done yet.

    spectral-jax prepare --list
    spectral-jax prepare --dataset=acdc --raw_dir=ACDC --data_dir=prepared
    spectral-jax prepare --dataset=glas --raw_dir=GlaS --option=part=A

Beside the records lie `summary.json`, `SHA256SUMS` of the raw files (`sha256sum --check` in their
folder) and `contact_sheet.png`, which shows whether masks fit their images. `DATASETS.md` says
how to obtain each set and lay out its files. Preparation can be interrupted and rerun.
"""

import difflib
import logging
import pathlib
import textwrap
import time
from collections.abc import Sequence
from typing import Any

from absl import app
from absl import flags as absl_flags

from spectral_jax.commands import flags
from spectral_jax.data.datasets import DATASETS, DataError, Dataset, prepare
from spectral_jax.data.datasets.summary import (
    CHECKSUMS_FILE,
    PREPARE_AGAIN,
    SHEET_FILE,
    SUMMARY_FILE,
)
from spectral_jax.files import read_json

COLUMNS = {
    "name": 19,
    "modality": 13,
    "classes": 17,
    "test split": 14,
    "out of distribution": 12,
    "licence": 15,
}


def print_list() -> None:
    """Prints the data sets as a table, 100 columns wide."""
    print_row(list(COLUMNS))
    print_row(["-" * width for width in COLUMNS.values()])
    for dataset in DATASETS.values():
        classes = ", ".join(dataset.classes[1:]) if dataset.classes else "as in the files"
        partners = [p.name if p.name != dataset.name else "itself" for p in dataset.partners]
        print_row(
            [
                dataset.name,
                dataset.modality,
                classes,
                dataset.test,
                ", ".join(partners) or "-",
                dataset.licence,
            ]
        )
    print("\nMore of one of them: --dataset=NAME")


def print_row(cells: Sequence[str]) -> None:
    """Prints cells beside each other, each wrapped to its column."""
    columns = [
        textwrap.wrap(cell, width) for cell, width in zip(cells, COLUMNS.values(), strict=True)
    ]
    for line in range(max(map(len, columns))):
        texts = [column[line] if line < len(column) else "" for column in columns]
        row = "  ".join(
            text.ljust(width) for text, width in zip(texts, COLUMNS.values(), strict=True)
        )
        print(row.rstrip())


def print_dataset(dataset: Dataset) -> None:
    """Prints all that is known of a set."""
    classes = zip(dataset.classes or (), dataset.colors, strict=True)
    facts = {
        "modality": dataset.modality,
        "channels": str(dataset.channels or "as in the files"),
        "classes": ", ".join(f"{name} {color}" for name, color in classes) or "as in the files",
        "intensity": dataset.intensity,
        "test split": dataset.test,
        "licence": dataset.licence,
        "files": dataset.source,
    }
    for partner in dataset.partners:
        pairs = (f"{theirs} = {ours}" for theirs, ours in partner.classes.items())
        options = "".join(f" {key}={value}" for key, value in partner.options.items())
        facts[f"try on {partner.name}{options}"] = f"{', '.join(pairs)}; shift: {partner.shift}"
    print(f"{dataset.name}: {dataset.description}")
    for name, text in facts.items():
        print(
            textwrap.fill(
                f"{name}: {text}", flags.COLUMNS, initial_indent="  ", subsequent_indent="    "
            )
        )


def print_summary(folder: pathlib.Path) -> None:
    """Prints what a prepared set holds."""
    summary = read_json(folder / SUMMARY_FILE, PREPARE_AGAIN)
    for name, split in summary["splits"].items():
        shares = ", ".join(
            f"{label} {100 * share:.2f} %"
            for label, share in split["class_share"].items()
            if label != "background"
        )
        size = " x ".join("-".join(map(str, sorted(set(ends)))) for ends in split["size"].values())
        print(f"  {name}: {split['cases']} cases, {split['records']} records, {size}; {shares}")
    for remark in summary["remarks"]:
        note = f"note: {remark}"
        print(textwrap.fill(note, flags.COLUMNS, initial_indent="  ", subsequent_indent="    "))
    for file in (SUMMARY_FILE, CHECKSUMS_FILE, SHEET_FILE):
        print(f"  {folder / file}")


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options given as `key=value`; `prepare` knows their types."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise app.UsageError(f"--option={text}: expected --option=key=value")
        if key in options:
            raise app.UsageError(f"--option={text}: {key} is given twice")
        options[key] = value
    return options


def main() -> None:
    if LIST.value:
        print_list()
        return
    dataset = DATASETS.get(NAME.value)
    if dataset is None:
        nearest = difflib.get_close_matches(NAME.value, DATASETS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise DataError(f"--dataset={NAME.value}: {hint}--list shows the sets that are known")
    if dataset.needs_root and not RAW_DIR.value:
        print_dataset(dataset)
        return
    logging.getLogger("spectral_jax").setLevel(logging.ERROR)  # the summary says it all
    start = time.time()
    options = parse_options(OPTIONS.value)
    try:
        folder = prepare(dataset, root=RAW_DIR.value, data_dir=DATA_DIR.value, **options)
    except DataError as error:  # it names the options of training
        raise DataError(str(error).replace("--config.data.options.", "--option=")) from error
    before = (folder / SUMMARY_FILE).stat().st_mtime < start
    print(f"{folder}: {'already there' if before else f'written in {time.time() - start:.0f} s'}")
    print_summary(folder)


if __name__ == "__main__":
    LIST = absl_flags.DEFINE_bool("list", False, "Print the data sets that are known.")
    NAME = absl_flags.DEFINE_string("dataset", "", "Which one to prepare.")
    RAW_DIR = absl_flags.DEFINE_string("raw_dir", "", "Folder of its raw files.")
    DATA_DIR = absl_flags.DEFINE_string(
        "data_dir",
        "",
        "Where prepared sets are kept; by default the folder of tensorflow-datasets.",
    )
    OPTIONS = absl_flags.DEFINE_multi_string(
        "option", [], "key=value, an option of the set's reader."
    )
    flags.run(main)
