"""Writes the pages of the API reference: one a package, all of its public modules, as they are."""

import pathlib

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]


def on_files(files, config):
    """Adds `api/<package>.md` for each package of spectral_jax."""
    for package in sorted((ROOT / "spectral_jax").glob("*/__init__.py")):
        modules = sorted(package.parent.rglob("*.py"))
        names = [".".join(m.relative_to(ROOT).with_suffix("").parts) for m in modules]
        names = [name.removesuffix(".__init__") for name in names]
        public = [name for name in names if "._" not in name]
        text = f"# {package.parent.name}\n\n" + "".join(f"::: {name}\n\n" for name in public)
        uri = f"api/{package.parent.name}.md"
        files.append(File.generated(config, uri, content=text))
    return files
