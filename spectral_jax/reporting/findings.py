"""The table of all registered studies for a README, between two marks, made from their results."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from spectral_jax.files import read_json
from spectral_jax.reporting.study_page import difference, markdown_table, verdict_words

BEGIN, END = "<!-- findings, by experiments.report -->\n", "<!-- end of findings -->\n"
HEAD = ("Study", "Comparison", "Difference, points", "Seeds, units", "Verdict")


def findings(results: pathlib.Path) -> str:
    """A line for each primary comparison of each study.

    Args:
      results: the folder with a folder for each study.
    """
    rows = [
        row
        for file in sorted(results.glob("*/results.json"))
        for row in _rows(read_json(file, "delete it and run spectral-jax report on its folder"))
    ]
    if not rows:
        return "No registered study has a finished run yet.\n"
    return "\n".join(markdown_table({"head": HEAD, "rows": rows})) + "\n"


def _rows(results: Mapping[str, Any]) -> Iterator[list[str]]:
    registered = results["registration"]["status"] != "not registered"
    there, missing = len(results["runs"]), len(results["missing"])
    for entry in results["primary"]:
        words = verdict_words(entry, registered)
        if missing:
            words += f": {there} of {there + missing} runs"
        counts = f"{entry['seeds']}, {entry['units']}"
        yield [results["study"]["title"], entry["name"], difference(entry), counts, words]


def with_findings(text: str, table: str) -> str:
    """The text with the table between its marks; unchanged where it has none.

    >>> with_findings(f"A\\n{BEGIN}old\\n{END}B", "new\\n").splitlines()[2]
    'new'
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{begin}{table}{end}{after}" if begin and end else text
