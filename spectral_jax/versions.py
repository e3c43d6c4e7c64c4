"""What made a result: versions of this package and of those it uses, and the machine."""

import hashlib
import json
import pathlib
import platform
import subprocess
from importlib import metadata

import jax

import spectral_jax
from spectral_jax import allocator


def versions() -> dict[str, str]:
    """Versions of this package, its revision, and what it ran on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "spectral_jax": spectral_jax.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "allocator": allocator.name(),
    }


def revision() -> str:
    """The commit of this package's own repository; of an installed package, what was installed."""
    folder = pathlib.Path(spectral_jax.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    try:
        # installed packages may lie in a folder of somebody else's repository, which ignores them
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=12").strip()
    except (OSError, subprocess.CalledProcessError):
        return _installed_revision()


def _installed_revision() -> str:
    try:
        package = metadata.distribution("spectral_jax")
    except metadata.PackageNotFoundError:
        return "unknown"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:  # pip install git+https://...
        return origin["vcs_info"]["commit_id"][:12]
    hashes = sorted(
        f"{file} {file.hash.value}"
        for file in package.files or ()
        if file.parts[0] == "spectral_jax" and file.suffix != ".pyc" and file.hash
    )
    digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]
    return f"installed files sha256:{digest}" if hashes else "unknown"
