"""A package index made of stubs, in which every package of a lock also has a release that came after the lock."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.install.pythons import ROOT

LATER = "9999.0"
PIN = re.compile(r"^([a-z0-9.-]+)==([^ ]+)( ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", re.MULTILINE)


def needed(name: str, version: str) -> list[str]:
    """The metadata that say what a package needs: its own where this very version is installed here."""
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        return []
    if metadata["Version"] != version.partition("+")[0] and metadata["Version"] != version:
        return []
    lines = [f"Requires-Dist: {one}" for one in metadata.get_all("Requires-Dist", ())]
    return lines + [f"Provides-Extra: {one}" for one in metadata.get_all("Provides-Extra", ())]


def wheel(folder: Path, name: str, version: str, metadata: list[str]) -> Path:
    """Write a wheel that holds nothing but metadata."""
    stem = f"{name.replace('-', '_').replace('.', '_')}-{version}"
    file = folder / f"{stem}-py3-none-any.whl"
    members = {
        "METADATA": "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""]),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{stem}.dist-info/{one},,\n" for one in [*members, "RECORD"])
    with zipfile.ZipFile(file, "w") as archive:
        for member, text in {**members, "RECORD": record}.items():
            archive.writestr(f"{stem}.dist-info/{member}", text)
    return file


class Index:
    """The index, and copies of tools/install.py and of the locks, whose hashes are those of the stubs."""

    def __init__(self, folder: Path) -> None:
        self.url = (folder / "simple").as_uri()
        self.copy = folder / "copy"
        self.folder = folder / "simple"
        self._hashes: dict[tuple[str, str], str] = {}
        (self.copy / "tools").mkdir(parents=True)
        shutil.copy(ROOT / "tools/install.py", self.copy / "tools")
        for lock in ROOT.glob("constraints*.txt"):
            (self.copy / lock.name).write_text(PIN.sub(self._with_a_stub, lock.read_text()))
        for name in {name for name, _ in self._hashes}:
            self._release(name, LATER)
            links = (f'<a href="{file.name}#sha256={_sha256(file)}">x</a>' for file in (self.folder / name).iterdir())
            page = "\n".join(links)
            (self.folder / name / "index.html").write_text(f"<!DOCTYPE html><html><body>\n{page}\n</body></html>\n")

    def _with_a_stub(self, pin: re.Match[str]) -> str:
        name, version, marker = pin[1], pin[2], pin[3] or ""
        if (name, version) not in self._hashes:
            self._hashes[name, version] = self._release(name, version)
        return f"{name}=={version}{marker} --hash=sha256:{self._hashes[name, version]}"

    def _release(self, name: str, version: str) -> str:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return _sha256(wheel(self.folder / name, name, version, needed(name, version)))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def pins(lock: Path) -> Iterator[tuple[str, str, str]]:
    """Each pin of a lock: name, version and marker."""
    for name, version, marker, _ in PIN.findall(lock.read_text()):
        yield name, version, marker.removeprefix(" ; ").strip()


def expected(lock: Path, environment: dict[str, str]) -> dict[str, str]:
    """What a lock installs into a Python, whose markers have these values."""
    found = {}
    for name, version, marker in pins(lock):
        requirement = Requirement(f"{name}=={version}" + (f"; {marker}" if marker else ""))
        if requirement.marker is None or requirement.marker.evaluate(environment):
            found[name] = version
    return found
