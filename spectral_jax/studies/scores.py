"""`scores.csv.gz`: every score of every case of a study, for anyone to compute again from."""

import csv
import gzip
import io
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from spectral_jax.files import written_whole
from spectral_jax.studies.records import BY_CASE, BY_CLASS, KEYS

FILE = "scores.csv.gz"
FIRST = ("arm", "seed", "dataset", *KEYS)


def rows_of(data_set: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one data set in a record."""
    return [dict(zip(data_set["columns"], row, strict=True)) for row in data_set["rows"]]


def write_scores(folder: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> pathlib.Path:
    """Writes the table: a row for each run, data set, case and class, undefined scores empty."""
    rows = [
        {"arm": record["arm"], "seed": record["seed"], "dataset": key, **row}
        for record in records
        for key, data_set in sorted(record["data_sets"].items())
        for row in rows_of(data_set)
    ]
    metrics = [name for name in (*BY_CLASS, *BY_CASE) if any(name in row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, (*FIRST, *metrics), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder / FILE
    with written_whole(path) as temporary:
        # no date and no name: the same scores are the same bytes
        temporary.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    return path
