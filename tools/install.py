"""Install the pinned packages and normstats. `make setup`, `make install` and deploy/Dockerfile run this.

pip resolves nothing here: a lock names every package that is needed, so a release made later cannot change or break an
installation. Every file is checked against its hash, and only normstats itself is built.

This runs in the Python that the caller names, in order to report a Python that cannot be used. So it needs the standard
library alone, and no syntax newer than Python 3.6.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every pin has a wheel for each of these.
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TORCH = {"cpu": "constraints-torch-cpu.txt", "cuda": "constraints-torch.txt"}
# PyPI has no CPU build of torch for Linux.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class InstallError(Exception):
    """One sentence about what was found and what to do."""


def check_version() -> None:
    """Refuse a Python for which nothing is pinned."""
    version = "{}.{}".format(*sys.version_info)
    if version not in PYTHONS:
        raise InstallError(
            f"{sys.executable} is Python {version}; normstats is pinned for Python {PYTHONS[0]} to {PYTHONS[-1]}. Name"
            " one of these, for example: make setup PYTHON=python3.12"
        )


def check_own() -> None:
    """Refuse a Python into which the operating system alone may install, before pip does (PEP 668)."""
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and marker.exists() and not os.environ.get("PIP_BREAK_SYSTEM_PACKAGES"):
        raise InstallError(
            f"{sys.executable} belongs to the operating system ({marker}), and pip may not install into it. Make an"
            " environment of your own and install into that: python3 -m venv ~/normstats && make install"
            " PYTHON=~/normstats/bin/python (or build a wheel with `make dist` and give it to pipx)"
        )
    if importlib.util.find_spec("pip") is None:
        raise InstallError(
            f"{sys.executable} has no pip. Install it (on Debian and Ubuntu: apt install python3-pip), or make an"
            " environment: python3 -m venv ~/normstats && make install PYTHON=~/normstats/bin/python"
        )


def make_environment(folder: Path) -> str:
    """Make a virtual environment, or take the one that is there with the pip that it has; return its Python."""
    new = not folder.exists()
    command = [sys.executable, "-m", "venv", str(folder)]
    made = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if made.returncode:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if "ensurepip" in made.stdout:
            raise InstallError(
                f"{sys.executable} cannot make a virtual environment, as it has no ensurepip. Install it (on Debian and"
                " Ubuntu: apt install python3-venv), or name another Python: make setup PYTHON=python3.12"
            )
        raise InstallError(f"{sys.executable} could not make the virtual environment {folder}:\n{made.stdout.strip()}")
    return str(folder / "bin/python")


def torch_build() -> str:
    """Decide which torch is installed: what TORCH says, else the build for what this machine has."""
    asked = os.environ.get("TORCH") or ("cuda" if shutil.which("nvidia-smi") else "cpu")
    if asked not in TORCH:
        raise InstallError(
            f"TORCH={asked}: expected TORCH=cpu or TORCH=cuda (PyPI's build, 3 GB with CUDA's libraries)"
        )
    return asked


def pip(python: str, *arguments: str, quiet: bool = False) -> bool:
    """Install by pip; return whether it could."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *arguments]
    return subprocess.run(command, stderr=subprocess.DEVNULL if quiet else None).returncode == 0


def pinned(lock: str) -> "list[str]":
    """pip's arguments for all packages of a lock, which it must not resolve."""
    return ["--require-hashes", "--only-binary", ":all:", "--requirement", str(ROOT / lock)]


def install_torch(python: str, build: str) -> None:
    """Install torch, and never another build than the one decided on."""
    wanted = pinned(TORCH[build])
    if build == "cuda":
        if not pip(python, *wanted):
            raise InstallError(
                "torch's CUDA build could not be installed, for the reason above. On a machine without an NVIDIA GPU"
                " take its CPU build: TORCH=cpu"
            )
    # An index or a folder of pip's own settings comes first: it may be the only one in reach.
    elif not pip(python, *wanted, quiet=True) and not pip(python, *wanted, "--extra-index-url", CPU_INDEX):
        raise InstallError(
            f"torch's CPU build could not be installed, for the reason above. It was looked for in pip's indexes and in"
            f" {CPU_INDEX}, by the hashes in {TORCH[build]}. Name an index that has it in PIP_EXTRA_INDEX_URL, or a"
            " folder with its wheel in PIP_FIND_LINKS; TORCH=cuda installs PyPI's build, 3 GB with CUDA's libraries"
        )


def main() -> None:
    """Install what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("lock", help="the packages beside torch: constraints.txt or constraints-server.txt")
    parser.add_argument("--venv", type=Path, help="into this virtual environment, made where there is none")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--editable", action="store_true", help="normstats as it is in this folder")
    kind.add_argument("--pins-only", action="store_true", help="all but normstats")
    parser.add_argument("--compile", action="store_true", help="the kernels too, which a server does when it starts")
    asked = parser.parse_args()
    check_version()
    build = torch_build()
    if asked.venv is None:
        check_own()
    python = sys.executable if asked.venv is None else make_environment(asked.venv)
    print(f"installing {asked.lock}, with torch's {build} build (TORCH=cpu or TORCH=cuda decides)", flush=True)
    install_torch(python, build)
    if not pip(python, *pinned(asked.lock)):
        raise InstallError(
            f"{asked.lock} could not be installed, for the reason above. pip takes packages from https://pypi.org, or"
            " from the index that PIP_INDEX_URL names"
        )
    own = ["--no-build-isolation", *(["--editable"] if asked.editable else []), str(ROOT)]
    if not asked.pins_only and not pip(python, *own):
        raise InstallError("normstats could not be built, for the reason above")
    command = [python, "-m", "pip", "check", "--disable-pip-version-check"]
    checked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if checked.returncode:
        raise InstallError(
            f"{asked.lock} is installed, and does not fit with other packages of this Python:\n{checked.stdout}"
            "Take an environment of its own: python3 -m venv ~/normstats && make install PYTHON=~/normstats/bin/python"
        )
    if asked.compile:
        print("compiling the kernels for this machine: a minute or two", flush=True)
        compiled = subprocess.run([python, "-P", "-m", "normcore.kernels", "usual"])
        if compiled.returncode:
            print(
                "the kernels are not compiled, for the reason above: a server compiles them while it serves", flush=True
            )


if __name__ == "__main__":
    try:
        main()
    except InstallError as error:
        sys.exit(f"normstats: {error}")
