"""Pin and hash all that is installed, for every platform.

constraints.txt is for work on normstats, constraints-server.txt for a server; torch goes beside either: PyPI's as in
constraints-torch.txt, or its CPU build as in constraints-torch-cpu.txt. Those are two as pip prefers what an index
hashes to what lies in a folder, whatever the versions: given both it would never take the CPU build from there.

python tools/lock.py                      add what is new in pyproject.toml; versions stay as they are
python tools/lock.py --upgrade            take the newest versions
python tools/lock.py --cpu-torch FOLDER   hash torch's CPU builds too: those for this version that lie there
python tools/lock.py --cpu-torch https://download.pytorch.org/whl/cpu   take the hashes that this index tells
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
from urllib.parse import unquote
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
ALL, SERVER, TORCH, CPU = (ROOT / f"constraints{what}.txt" for what in ("", "-server", "-torch", "-torch-cpu"))
HEADERS = {
    ALL: "Every version that the tests run with, but torch's",
    SERVER: "What a server runs with, on any store, and what builds it, but torch",
    TORCH: "PyPI's torch, and what its build for Linux brings",
    CPU: "torch's CPU build: on Linux from https://download.pytorch.org/whl/cpu, as PyPI has none for Linux",
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


def hashes(text: str) -> set[str]:
    """The hashes in a text."""
    return set(re.findall(r"sha256[:=]([0-9a-f]{64})", text))


def cpu_hashes(version: str, source: str) -> set[str]:
    """The hashes of torch's CPU wheels for Linux: those known before, and those of a folder of wheels or an index."""
    _, _, known = CPU.read_text().partition(f"torch=={version}+cpu")
    if "://" not in source:
        wheels = Path(source).glob(f"torch-{version}+cpu-*linux*.whl")
        return hashes(known) | {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels}
    with urlopen(f"{source.rstrip('/')}/torch/") as page:
        links = re.findall(r'href="([^"]+)"', page.read().decode())
    ours = re.compile(rf"(.*/)?torch-{re.escape(version)}\+cpu-[^/]*linux")
    return hashes(known).union(*(hashes(link) for link in links if ours.match(unquote(link))))


def builds(torch: str, source: str) -> tuple[str, str]:
    """The pins of PyPI's torch and of its CPU build, from all that was found. The latter is `+cpu` on Linux, and
    elsewhere PyPI's own.
    """
    first, *found = torch.split(HASH)
    of_cpu = {f"sha256:{one}" for one in cpu_hashes(first.split("==")[1], source)}
    # uv finds the CPU build too, where a folder of its settings has it. TORCH=cuda must not install that.
    of_pypi = [one for one in found if one not in of_cpu]
    elsewhere = HASH.join([f"{first} ; sys_platform != 'linux'", *of_pypi])
    on_linux = HASH.join([f"{first}+cpu ; sys_platform == 'linux'", *sorted(of_cpu)])
    return HASH.join([first, *of_pypi]), f"{elsewhere}\n{on_linux}"


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
    parser.add_argument("--cpu-torch", default=str(ROOT / "dist"), help="a folder of torch's CPU builds, or an index")
    asked = parser.parse_args()
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    known = "" if asked.upgrade else ALL.read_text() + TORCH.read_text()
    everything = resolve("pyproject.toml", *_extras("dev", "fuzz", "cuda"), known=known, more=build)
    known = "\n".join(everything.values())
    server = resolve("pyproject.toml", *_extras("server", "postgres", "traces", "cuda"), known=known, more=build)
    of_torch = {name: pin for name, pin in server.items() if OF_TORCH.match(name)}
    of_torch["torch"], cpu = builds(of_torch["torch"], asked.cpu_torch)
    write(ALL, {name: pin for name, pin in everything.items() if name == "triton" or name not in of_torch})
    write(SERVER, {name: pin for name, pin in server.items() if name not in of_torch})
    write(TORCH, of_torch)
    write(CPU, {"torch": cpu})


if __name__ == "__main__":
    main()
