"""The images' recipe copies what is there, pins what it fetches, and runs as nobody in particular."""

from __future__ import annotations

import re

from tests.deploy.manifests import DEPLOY, ROOT
from tools.install import PYTHONS


def test_it_copies_what_is_there_and_pins_what_it_fetches() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    let_through = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {one for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for one in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / one).exists() for one in copied)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    names = [name for _, name in stages]
    assert {"cpu", "cuda"} < set(names)
    assert all(image in names or re.fullmatch(r"python:\$\{PYTHON\}-(slim-)?bookworm", image) for image, _ in stages)
    assert set(re.findall(r"--from=(\S+)", text)) <= set(names)
    (version,) = re.findall(r"^ARG PYTHON=(3\.\d+)\.\d+$", text, re.MULTILINE)
    assert version in PYTHONS
    assert set(re.findall(r"pip install ([^&\n]+)", text)) == {"--no-deps --no-build-isolation . "}
    installed = re.findall(r"^RUN TORCH=(\w+) python tools/install.py --pins-only (\S+)$", text, re.MULTILINE)
    assert installed == [("cpu", "constraints-server.txt"), ("cuda", "constraints-server.txt")]
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if re.search(r" AS (cpu|cuda)$", stage.splitlines()[0]):
            assert re.search(r"^USER 10001:10001$", stage, re.MULTILINE)
            assert re.search(r'^ENTRYPOINT \["normstats", "serve"\]$', stage, re.MULTILINE)
