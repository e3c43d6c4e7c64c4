"""The report and the documentation in a real browser: nothing is missing, nothing too wide."""

import functools
import html.parser
import http.server
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from test_study_page import GAIN, register, write_study

from spectral_jax.metrics import score_case, summarise
from spectral_jax.reporting import write_report, write_study_report
from spectral_jax.studies.results import collect

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESK, PHONE = 1280, 390  # pixels
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # no name but this machine's resolves: a page that asks the network for a part logs an error
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium: the extra [docs]")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def check_page(browser, url):
    """Opens a page on a desk, then makes the screen a phone's; returns its number of pictures."""
    browser.get_log("browser")  # what the page before left there
    set_width(browser, DESK)
    browser.get(url)
    for width in (DESK, PHONE):
        set_width(browser, width)
        browser.execute_async_script(
            "const done = arguments[0];"
            "Promise.allSettled([...document.images].map(i => i.decode())).then(() => done())"
        )
        pictures = browser.execute_script(
            "return [...document.images].map(i => [i.alt, i.complete, i.naturalWidth])"
        )
        assert all(complete and size > 0 for _, complete, size in pictures), (url, pictures)
        page_width = browser.execute_script("return document.documentElement.scrollWidth")
        assert page_width <= width + 1, f"{url} is {page_width} pixels wide on a screen of {width}"
        problems = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        assert problems == [], url
    return len(pictures)


def set_width(browser, width):
    """Makes the screen that wide, and a phone's where it is narrow."""
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


# --- the tests of a page must be able to fail -----------------------------------------------------

HEAD = "<meta name='viewport' content='width=device-width'><link rel='icon' href='data:,'>"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<div style='width: 500px'>wide</div>", "pixels wide on a screen of 390"),
        ("<table><tr><td>" + "letters" * 50, "pixels wide on a screen of 1280"),
        ("<img src='missing.png' alt='missing'>", "missing"),
        ("<script>undefinedFunction()</script>", "undefinedFunction"),
        ("<script src='https://example.org/a.js'></script>", "example.org"),
    ],
)
def test_bad_pages_are_found(browser, tmp_path, body, problem):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html>{HEAD}<body>{body}")
    with pytest.raises(AssertionError, match=problem):
        check_page(browser, page.as_uri())


# --- the report -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> pathlib.Path:
    """The report of a run of two cases with long names, written as a run's files are."""
    workdir = (
        tmp_path_factory.mktemp("run") / "a_run_with_a_name_that_a_phone_cannot_hold_in_a_line"
    )
    (workdir / "evaluation").mkdir(parents=True)
    classes = ["background", "left ventricle of the heart", "myocardium"]
    rng = np.random.default_rng(0)
    truth = np.zeros((64, 48), np.uint8)
    truth[10:30, 8:30], truth[34:50, 10:40] = 1, 2
    rows, arrays, examples = [], {}, []
    for key, shift in enumerate((1, 4)):
        prediction = np.roll(truth, shift, axis=1)
        case = f"patient_{key}_with_a_long_name_of_many_letters_frame_01"
        scores = score_case(prediction, truth, 3)
        rows += [{"case": case, "class": n} | s for n, s in zip(classes[1:], scores, strict=True)]
        examples.append(
            {"rank": ["best", "worst"][key], "case": case, "slice": 3, "dice": 0.9, "key": str(key)}
        )
        arrays |= {
            f"{key}_image": rng.integers(0, 255, truth.shape, np.uint8),
            f"{key}_label": truth,
            f"{key}_prediction": prediction,
        }
    summary, by_class = summarise(rows)
    evaluation = {
        "trained_on": "hearts",
        "dataset": "hearts",
        "split": "test",
        "classes": classes,
        "colors": ["#000000", "#0072b2", "#d55e00"],
        "checkpoint": {"name": "best", "step": 4200},
        "distance_unit": "px",
        "cases": rows,
        "summary": summary,
        "by_class": by_class,
        "examples": examples,
        "wall_seconds": 1.0,
    }
    (workdir / "evaluation/hearts-test.json").write_text(json.dumps(evaluation))
    np.savez(workdir / "evaluation/hearts-test-examples.npz", **arrays)
    lines = [
        {"kind": "train", "step": s, "epoch": s / 10, "loss": 1 / s, "learning_rate": 1e-3}
        | {"images_per_second": 40.0, "step_seconds": 0.2, "data_wait_seconds": 0.004}
        for s in range(1, 40)
    ]
    lines.append({"kind": "validation", "step": 39, "dice": 0.8})
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (workdir / "config.json").write_text(json.dumps({"model": {"name": "unet"}}))
    return write_report(workdir)


def test_report(browser, report):
    assert check_page(browser, report.as_uri()) >= 6  # image, truth, prediction of both cases


def test_cases_are_sorted_by_a_click_and_lead_to_their_pictures(browser, report):
    set_width(browser, DESK)
    browser.get(report.as_uri())

    def column(number):
        return browser.execute_script(
            "return [...document.querySelector('.sortable').tBodies[0].rows]"
            ".map(row => row.cells[arguments[0]].textContent.trim())",
            number,
        )

    def click(number):
        script = "document.querySelectorAll('.sortable thead button')[arguments[0]].click()"
        browser.execute_script(script, number)

    assert column(1) == sorted(column(1))  # the worst first, without a click
    click(1)
    assert column(1) == sorted(column(1), reverse=True)
    assert len(set(column(1))) == 2
    click(0)
    names = column(0)
    assert names == sorted(names)
    click(0)
    assert column(0) == names[::-1]
    browser.execute_script("document.querySelector('.sortable tbody a').click()")
    target = browser.execute_script("return document.querySelector(':target h4').textContent")
    assert names[-1] in target


def shown_hints(browser):
    return browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done("
        "[...document.querySelectorAll('.scroll + .note')].filter(e => e.offsetHeight).length)))"
    )


def test_a_table_that_is_too_wide_says_that_it_scrolls(browser, report):
    set_width(browser, PHONE)
    browser.get(report.as_uri())
    assert shown_hints(browser) >= 1
    set_width(browser, 4 * DESK)
    assert shown_hints(browser) == 0


# --- the page of a study --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study_page(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("study"), {"midband": GAIN})
    study = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(study | {"title": "A study of hearts"}))
    collect(folder, register(tmp_path_factory.mktemp("studies")))
    return write_study_report(folder)


def test_study_page_shows_the_verdict_and_folds_the_rest(browser, study_page):
    check_page(browser, study_page.as_uri())
    set_width(browser, PHONE)
    browser.get(study_page.as_uri())
    visible = browser.execute_script("return document.body.innerText")
    assert "midband - none" in visible
    assert "Every comparison" in visible
    assert "Failed runs" not in visible  # in a part that is folded
    left, right, width = browser.execute_script(
        "const cell = document.querySelector('#primary tbody td').getBoundingClientRect();"
        "return [cell.left, cell.right, innerWidth]"
    )
    assert 0 < left < right <= width  # the verdict is seen without scrolling sideways
    browser.execute_script("document.querySelector('nav a[href=\"#scores\"]').click()")
    assert "Failed runs" in browser.execute_script("return document.body.innerText")
    for part in browser.execute_script("return document.querySelectorAll('details.part')"):
        browser.execute_script("arguments[0].open = true", part)
    page_width = browser.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= PHONE + 1
    assert shown_hints(browser) >= 3


# --- the documentation ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built and served on this machine: its folder and its address."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package} here: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    subprocess.run(build, cwd=ROOT, check=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_documentation(browser, site):
    folder, address = site
    pages = sorted(path.relative_to(folder) for path in folder.rglob("*.html"))
    assert len(pages) >= 18
    pictures = {str(page): check_page(browser, f"{address}/{page}") for page in pages}
    assert pictures["objective.html"] == 3
    assert pictures["index.html"] == 1


def test_reference_has_every_public_module(site):
    folder, _ = site
    text = "".join(path.read_text() for path in (folder / "api").glob("*.html"))
    for module in (ROOT / "spectral_jax").glob("*/**/*.py"):
        if module.parent.name in ("commands", "configs"):  # nobody imports these
            continue
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert f'id="{name}"' in text, name


class Page(html.parser.HTMLParser):
    """What a built page holds: the code of its examples, list items, links and their targets."""

    def __init__(self, file):
        super().__init__()
        self.code, self.items, self.links, self.targets, self.text = [], [], [], set(), ""
        self._open = []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._open.append(tag)
        self.targets |= {attributes.get("id"), attributes.get("name")}
        self.links += [v for k in ("href", "src") if (v := attributes.get(k))]
        if "article" in self._open and tag == "pre":
            self.code.append("")
        if "article" in self._open and tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if "article" not in self._open:
            return
        if "pre" in self._open:
            self.code[-1] += data
        else:
            self.text += data
        if "li" in self._open:
            self.items[-1] += data


@pytest.fixture(scope="module")
def pages(site):
    folder, _ = site
    return {str(file.relative_to(folder)): Page(file) for file in folder.rglob("*.html")}


def source_of(page):
    """A page's Markdown, with files that are linked to in a paragraph of their own."""
    return re.sub(
        r"^\[.*\]\(\.\./(.*\.md)\)$", lambda link: (ROOT / link[1]).read_text(),
        page.read_text(), flags=re.MULTILINE,
    )  # fmt: skip


FENCE = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCS = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("source", DOCS, ids=lambda source: source.stem)
def test_code_and_lists_of_a_page_are_there(pages, source):
    page, text = pages[f"{source.stem}.html"], source_of(source)
    shown = {code.strip() for code in page.code}
    for block in FENCE.findall(text):
        assert block.strip() in shown, block
    items = re.findall(r"^\s*- (.*)$", FENCE.sub("", text), re.MULTILINE)
    assert len(page.items) == len(items)
    for words, item in zip(items, page.items, strict=True):
        assert re.match(r"\W*(\w+)", item)[1] == re.match(r"\W*(\w+)", words)[1]
    for marker in ("--8", ":::", "```", "]("):
        assert marker not in page.text


def test_every_example_is_shown_whole(pages):
    shown = {code.strip() for code in pages["examples.html"].code}
    examples = [
        file
        for file in (ROOT / "experiments/examples").glob("*.py")
        if file.stem not in ("__init__", "discs")  # what the others learn
    ]
    assert len(examples) >= 6
    for file in examples:
        assert file.read_text().strip() in shown, file.name
    notebook = json.loads((ROOT / "experiments/examples/loss_and_training.ipynb").read_text())
    cells = ["".join(of["source"]) for of in notebook["cells"] if of["cell_type"] == "code"]
    assert len(cells) == 5
    assert shown.issuperset(cell.strip() for cell in cells)


def test_links_within_the_site_arrive(pages, site):
    folder, _ = site
    count = 0
    for name, page in pages.items():
        for link in page.links:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc or name == "404.html":
                continue
            target = (folder / name).parent / url.path if url.path else folder / name
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{name}: {link}"
            if url.fragment and target.suffix == ".html":
                there = pages[str(target.resolve().relative_to(folder.resolve()))].targets
                assert urllib.parse.unquote(url.fragment) in there, f"{name}: {link}"
            count += 1
    assert count > 100
