"""The pages as GitHub shows them: no link is dead, no marker of the site's builder is left."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted(
    file
    for file in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_right_on_github(page):
    text = CODE.sub("", page.read_text())
    for link in LINK.findall(text):
        path = link.partition("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), link
    assert not re.search(r"--8 ?<|^:::", text, re.MULTILINE)
    for line, after in re.findall(r"^([^\n-].*)\n(- .*)$", text, re.MULTILINE):
        assert line.startswith("  "), f"a list needs an empty line before it: {line!r}, {after!r}"


def test_pages_are_found():
    names = {page.name for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "DATASETS.md", "examples.md"} <= names
