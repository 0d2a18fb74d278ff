"""Generate what the Prometheus operator takes from what Prometheus takes: the same rules, in an object of Kubernetes'.

python tools/generate_rules.py            write deploy/kustomize/components/monitoring/prometheus-rule.yaml
python tools/generate_rules.py --check    write nothing; exit 1 if what is committed differs
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
OBJECT = DEPLOY / "kustomize" / "components" / "monitoring" / "prometheus-rule.yaml"

HEADER = """\
# Generated from deploy/prometheus/rules.yaml by tools/generate_rules.py: do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: normstats
  namespace: normstats
  labels:
    app.kubernetes.io/name: normstats
spec:
"""


def object_of(rules: str) -> str:
    """The object that has these rules, their comments included."""
    _, groups = rules.split("\ngroups:\n")
    return HEADER + "  groups:\n" + textwrap.indent(groups, "  ")


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything differs")
    check = parser.parse_args().check
    text = object_of(RULES.read_text())
    if OBJECT.exists() and OBJECT.read_text() == text:
        return
    if check:
        sys.exit(f"{OBJECT} is not what {RULES} generates: run tools/generate_rules.py")
    OBJECT.write_text(text)


if __name__ == "__main__":
    main()
