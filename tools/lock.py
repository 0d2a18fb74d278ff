"""Pin and hash all that is installed, for every platform.

constraints.txt is for work on normstats, constraints-server.txt for a server; torch goes beside either: PyPI's as in
constraints-torch.txt, or its CPU build as in constraints-torch-cpu.txt. Those are two as pip prefers what an index
hashes to what lies in a folder, whatever the versions: given both it would never take the CPU build from there.

python tools/lock.py                      add what is new in pyproject.toml; versions stay as they are
python tools/lock.py --upgrade            take the newest versions
python tools/lock.py --cpu-torch FOLDER   hash torch's CPU builds too: those for this version that lie there
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALL, SERVER, TORCH, CPU = (ROOT / f"constraints{what}.txt" for what in ("", "-server", "-torch", "-torch-cpu"))
HEADERS = {
    ALL: "Every version that the tests run with, but torch's",
    SERVER: "What a server runs with, on any store, and what builds it, but torch",
    TORCH: "PyPI's torch, and what its build for Linux brings",
    CPU: "torch's CPU build, of which PyPI has none for Linux",
}
# triton is for the tests too, which run the CUDA kernels in its interpreter.
OF_TORCH = re.compile("(nvidia|cuda)-|(torch|triton)$")

# What stands before each hash of a pin.
HASH = " \\\n    --hash="

Pins = dict[str, str]


def pins(text: str) -> Pins:
    """The pins of a file, by name, each with its marker and hashes."""
    found: Pins = {}
    for pin in re.findall(r"^[a-z0-9].*(?:\n    .*)*", text, re.MULTILINE):
        name = re.split("[=\\[ ]", pin)[0]
        found[name] = f"{found[name]}\n{pin}" if name in found else pin  # platforms may need different versions
    return found


def resolve(*sources: str, known: str = "", more: Iterable[str] = ()) -> Pins:
    """Resolve files of requirements, and more of them, for all platforms at once. What is known stays as it is, if it
    may. Hashes are those of all files of a version.
    """
    with tempfile.NamedTemporaryFile("w+", suffix=".txt") as pinned:
        pinned.write(known)
        pinned.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", *sources, "--output-file", pinned.name]
        command += ["-", "--quiet", "--universal", "--generate-hashes", "--no-header", "--no-annotate"]
        subprocess.run(command, cwd=ROOT, input="\n".join(more), text=True, check=True)
        return pins(Path(pinned.name).read_text())


def cpu_build(version: str, folder: Path) -> str:
    """The pin of torch's CPU build: the hashes known before, and those of the files in a folder."""
    pin = f"torch=={version}+cpu"
    first, *hashes = CPU.read_text().strip().partition("\n")[2].split(HASH)
    found = {*hashes} if first == pin else set()
    for build in folder.glob(f"torch-{version}+cpu-*.whl"):
        found.add(f"sha256:{hashlib.sha256(build.read_bytes()).hexdigest()}")
    return HASH.join([pin, *sorted(found)])


def write(path: Path, found: Pins) -> None:
    """Write a file of pins."""
    header = f"# {HEADERS[path]}, with the hashes of its files. Written by tools/lock.py.\n"
    path.write_text(header + "".join(f"{found[name]}\n" for name in sorted(found)))


def _extras(*names: str) -> list[str]:
    return [word for name in names for word in ("--extra", name)]


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--cpu-torch", type=Path, default=ROOT / "dist", help="a folder of torch's CPU builds; dist")
    asked = parser.parse_args()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    known = "" if asked.upgrade else ALL.read_text() + TORCH.read_text()
    everything = resolve("pyproject.toml", *_extras("dev", "fuzz", "cuda"), known=known, more=build)
    known = "\n".join(everything.values())
    server = resolve("pyproject.toml", *_extras("server", "postgres", "traces", "cuda"), known=known, more=build)
    of_torch = {name: pin for name, pin in server.items() if OF_TORCH.match(name)}
    write(ALL, {name: pin for name, pin in everything.items() if name == "triton" or name not in of_torch})
    write(SERVER, {name: pin for name, pin in server.items() if name not in of_torch})
    write(TORCH, of_torch)
    write(CPU, {"torch": cpu_build(re.split("==| ", of_torch["torch"])[1], asked.cpu_torch)})


if __name__ == "__main__":
    main()
