"""Generate the sync client from the asyncio one: the same code, less its awaits.

    python tools/generate_sync.py            write client/normstats/sync
    python tools/generate_sync.py --check    write nothing; exit 1 if what is committed differs

What really differs is written by hand, twice: concurrency.py and session.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "client" / "normstats"
BY_HAND = {"concurrency.py", "session.py"}
HEADER = "# Generated from normstats/aio/{name} by tools/generate_sync.py: do not edit.\n"

REPLACEMENTS = (
    (r"    def __await__\(.*?\n    async def _itself\(self\) -> Self:\n        return self\n\n", ""),
    (
        r'"""The asyncio client: the same names as the sync one, awaited\.',
        '"""The sync client: the same names as the asyncio one.',
    ),
    (r"AsyncIterator", "Iterator"),
    (r"Async([A-Z])", r"\1"),
    (r"async (def|with|for) ", r"\1 "),
    (r"await ", ""),
    (r"__aenter__", "__enter__"),
    (r"__aexit__", "__exit__"),
    (r"normstats\.aio", "normstats.sync"),
    (r"normstats\.sync\.connect\(", "normstats.connect("),
    (r"import Iterator, Generator, ", "import Iterator, "),
)


def sync_of(name: str) -> str:
    """The sync twin of one module, formatted."""
    text = (CLIENT / "aio" / name).read_text()
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    text = HEADER.format(name=name) + text
    for command in (["check", "--fix-only", "--select", "I,F401", "--quiet"], ["format", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(CLIENT / "sync" / name), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return text


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything differs")
    check = parser.parse_args().check
    names = sorted(path.name for path in (CLIENT / "aio").glob("*.py") if path.name not in BY_HAND)
    stale = []
    for name in names:
        target, text = CLIENT / "sync" / name, sync_of(name)
        if not target.exists() or target.read_text() != text:
            stale.append(name)
            if not check:
                target.write_text(text)
    if check and stale:
        sys.exit(
            f"client/normstats/sync is not what client/normstats/aio generates: {', '.join(stale)}; run `make sync`"
        )


if __name__ == "__main__":
    main()
