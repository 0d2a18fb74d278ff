"""The command line: `normstats --help`. Nothing heavy is imported before it is known to be there."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = ("click", "rich", "pyarrow", "safetensors")


def main() -> None:
    """The entry point; exits 0 when done, 1 when the server or a file said no, 2 on wrong usage."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        print(f"the command line needs {', '.join(missing)} too: pip install 'normstats[cli]'", file=sys.stderr)
        sys.exit(1)
    from normstats.cli.app import cli

    cli(prog_name="normstats")
