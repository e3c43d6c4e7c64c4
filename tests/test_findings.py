"""What the README files say was found is what the studies' results say."""

import json
import pathlib
import re

import pytest

from spectral_jax.reporting.findings import BEGIN, END, findings, with_findings

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGES = [RESULTS / "README.md", ROOT / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_table_is_made_from_the_results(page):
    text = page.read_text()
    assert (BEGIN in text) == (END in text) == (text.count(BEGIN) == 1)
    assert with_findings(text, findings(RESULTS)) == text, "run spectral-jax report on each study"


def test_the_results_page_has_the_table():
    assert BEGIN in PAGES[0].read_text()


def entry(verdict, **more):
    found = {"name": "midband - none", "mean": 0.0045, "low": 0.001, "high": 0.0079}
    return found | {"seeds": 4, "units": 20, "verdict": verdict} | more


@pytest.mark.parametrize(
    ("status", "missing", "primary", "words"),
    [
        ("as registered", [], entry("gain"), "gain"),
        ("not registered", [], entry("gain"), "gain (not registered)"),
        ("departs", ["a run"], entry("not finished"), "not finished: 3 of 4 runs"),
        (
            *("as registered", [], entry("undecided", equivalent=True, equivalence=0.005)),
            "undecided; within 0.5 points of 0",
        ),
    ],
)
def test_a_line_says_what_the_json_says(tmp_path, status, missing, primary, words):
    assert findings(tmp_path) == "No registered study has a finished run yet.\n"
    (tmp_path / "heart").mkdir()
    results = {
        "study": {"title": "A | heart"},
        "registration": {"status": status},
        "runs": [{}] * 3,
        "missing": missing,
        "primary": [primary],
    }
    (tmp_path / "heart" / "results.json").write_text(json.dumps(results))
    line = findings(tmp_path).splitlines()[2]
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)][1:-1]
    expected = [r"A \| heart", "midband - none", r"+0.45 \[+0.10, +0.79\]", "4, 20", words]
    assert cells == expected
