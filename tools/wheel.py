"""Build dist/normstats-VERSION-py3-none-any.whl and check it: its metadata, and that it has every file of the packages.

What is missing in a wheel is missed only by its users: from a checkout everything is found.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"


def sources() -> set[str]:
    """The files of the packages, as git knows them or would."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    found = set()
    for package in packages:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", package]
        listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        found |= {str(Path(name).relative_to(Path(package).parent)) for name in listed if (ROOT / name).exists()}
    return found


def build(folder: Path) -> Path:
    """Build the wheel; return where it is."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("normstats-*.whl")
    return wheel


def missing(wheel: Path) -> list[str]:
    """The files of the packages that a wheel does not have."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(sources() - set(archive.namelist()))


def main() -> None:
    """Build and check."""
    for old in DIST.glob("normstats-*.whl"):
        old.unlink()
    wheel = build(DIST)
    if absent := missing(wheel):
        sys.exit(f"{wheel.name} lacks {', '.join(absent)}: see [tool.hatch.build] in pyproject.toml")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], check=True)
    print(wheel.relative_to(ROOT))


if __name__ == "__main__":
    main()
