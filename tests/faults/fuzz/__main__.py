"""`python -m tests.faults.fuzz FOLDER...`: atheris on the wire's parsers, guided by what of them was executed.

What it finds to be new is added to the first folder. Options are libFuzzer's: -max_total_time=60 ends after a minute,
-merge=1 takes over what the second folder has that the first has not.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["normstats.wire", "normstats.specs"]):
    from tests.faults.fuzz import wire

atheris.Setup(sys.argv, wire.check)
atheris.Fuzz()
