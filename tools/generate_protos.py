"""Generate client/normstats/v1 from proto/: messages, stubs, their types and the service config.

python tools/generate_protos.py            write
python tools/generate_protos.py --check    write nothing; exit 1 if what is committed differs
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
GENERATED = ROOT / "client" / "normstats" / "v1"
SERVICE_CONFIG = PROTO / "normstats" / "v1" / "service_config.json"


def generate(target: Path) -> None:
    """Write everything below target/normstats/v1."""
    sources = sorted(str(path) for path in PROTO.rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTO}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
    ]
    if protoc.main(arguments + sources) != 0:
        sys.exit("protoc failed")
    folder = target / "normstats" / "v1"
    for empty in (path for one in ("activity", "tensor", "resources") for path in folder.glob(f"{one}_pb2_grpc.*")):
        empty.unlink()
    (folder / "__init__.py").write_text('"""Generated from proto/normstats/v1: do not edit."""\n')
    shutil.copy(SERVICE_CONFIG, folder / SERVICE_CONFIG.name)


def differences(one: Path, other: Path) -> list[str]:
    """Names of files that are missing from one side or differ."""
    names = {path.name for folder in (one, other) for path in folder.iterdir() if path.is_file()}
    _, mismatch, errors = filecmp.cmpfiles(one, other, sorted(names), shallow=False)
    return mismatch + errors


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything differs")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = Path(folder) / "normstats" / "v1"
        if check:
            if stale := differences(fresh, GENERATED):
                sys.exit(f"client/normstats/v1 is not what proto/ generates: {', '.join(stale)}; run `make protos`")
            return
        GENERATED.mkdir(parents=True, exist_ok=True)
        for path in fresh.iterdir():
            shutil.copy(path, GENERATED / path.name)


if __name__ == "__main__":
    main()
