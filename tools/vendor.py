"""Bring what the console uses of others into server/normserver/console/vendor: uPlot, as npm has it.

    python tools/vendor.py            fetch it, check it against the hash below, write it
    python tools/vendor.py --check    write nothing; exit 1 if what is committed differs

So a browser asks no host but the server, and the wheel has all that the console needs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "server" / "normserver" / "console" / "vendor"
PACKAGE = "uplot@1.6.32"
# The integrity that npm's registry gives for the package's file.
SHA512 = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
FILES = {
    "package/dist/uPlot.esm.js": "uPlot.esm.js",
    "package/dist/uPlot.min.css": "uPlot.min.css",
    "package/LICENSE": "uPlot.LICENSE",
}


def packed() -> bytes:
    """The package's file, as npm fetches it.

    Raises:
        ValueError: it is not the one that is pinned.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, capture_output=True)
        (file,) = Path(folder).glob("*.tgz")
        content = file.read_bytes()
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != SHA512:
        raise ValueError(f"{PACKAGE} has sha512 {found}; expected {SHA512}")
    return content


def vendored() -> dict[str, bytes]:
    """What belongs into the folder, by name."""
    with tarfile.open(fileobj=io.BytesIO(packed())) as package:
        members = {target: package.extractfile(source) for source, target in FILES.items()}
        return {target: member.read() for target, member in members.items() if member is not None}


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if what is committed differs")
    check = parser.parse_args().check
    different = []
    for name, content in vendored().items():
        path = FOLDER / name
        if check and (not path.exists() or path.read_bytes() != content):
            different.append(name)
        elif not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    if different:
        print(f"{FOLDER} is not {PACKAGE}: {', '.join(different)}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
