"""What the site adds to the pages as GitHub shows them: linked files, and the API reference."""

import json
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
NO_LIBRARY = ("commands", "configs")  # --help shows the commands; nobody imports them
# a paragraph that is one link to a file outside `docs`
LINKED_FILE = re.compile(r"^\[[^\]]*\]\(\.\./([\w/]+\.(?:py|md|ipynb))\)$", re.MULTILINE)
LINKED_PACKAGE = re.compile(r"\]\(\.\./spectral_jax/(\w+)\)")


def on_files(files, config):
    """Adds `api/<package>.md` for each package of spectral_jax: all of its public modules."""
    for package in sorted((ROOT / "spectral_jax").glob("*/__init__.py")):
        if package.parent.name in NO_LIBRARY:
            continue
        modules = sorted(package.parent.rglob("*.py"))
        names = [".".join(m.relative_to(ROOT).with_suffix("").parts) for m in modules]
        names = [name.removesuffix(".__init__") for name in names]
        public = [name for name in names if "._" not in name]
        text = f"# {package.parent.name}\n\n" + "".join(f"::: {name}\n\n" for name in public)
        uri = f"api/{package.parent.name}.md"
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Shows linked files in place of links to them, and links packages to their reference."""
    markdown = LINKED_FILE.sub(lambda link: _show(ROOT / link[1]), markdown)
    return LINKED_PACKAGE.sub(r"](api/\1.md)", markdown)


def _show(file):
    text = file.read_text()
    if file.suffix == ".ipynb":
        return "\n\n".join(map(_show_cell, json.loads(text)["cells"]))
    return text if file.suffix == ".md" else f"```python\n{text}```"


def _show_cell(cell):
    source = "".join(cell["source"])
    if cell["cell_type"] == "code":
        return f"```python\n{source}\n```"
    return re.sub("^#", "##", source, flags=re.MULTILINE)  # below the page's own title
