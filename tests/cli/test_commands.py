"""Every command against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from normstats.cli.app import cli
from tests.server_process import ServerProcess

RNG = np.random.default_rng(13)
X = RNG.normal(5, 2, (400, 3)).astype(np.float32)

Run = Callable[..., Result]


@pytest.fixture
def run(server: ServerProcess) -> Run:
    """normstats, on the shared server; fails unless the exit code is the expected one."""

    def invoke(*arguments: object, code: int = 0, target: str = server.target) -> Result:
        result = CliRunner().invoke(cli, ["--target", target, *map(str, arguments)])
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return invoke


@pytest.fixture
def as_json(run: Run) -> Callable[..., Any]:
    """The one object that a command prints."""
    return lambda *arguments: json.loads(run(*arguments, "--json").stdout)


@pytest.fixture
def obs(run: Run, name: str, tmp_path: Path) -> str:
    """A normalizer that has seen X from a file."""
    np.save(tmp_path / "x.npy", X)
    run("create", name, "standardize", "--features", 3)
    run("update", name, tmp_path / "x.npy")
    return name


def test_create_show_and_list(run: Run, as_json: Callable[..., Any], name: str) -> None:
    made = as_json("create", name, "batch-norm", "--features", 3, "--set", "momentum=0.5", "--set", "renorm=[1.5, 0.5]")
    assert made["spec"]["kind"] == "batch-norm"
    assert made["spec"]["momentum"] == 0.5
    assert made["spec"]["renorm"] == [1.5, 0.5]
    assert as_json("show", name) == made | {"stats": as_json("show", name)["stats"]}
    assert "nothing seen yet" in run("show", name).stdout
    assert name[:10] in run("ls", name).stdout
    assert [json.loads(line)["name"] for line in run("--json", "ls", name).stdout.splitlines()] == [name]
    assert "there is a normalizer" in run("create", name, "batch-norm", "--features", 3, code=1).stderr


def test_show_tells_where_the_server_computes(run: Run, as_json: Callable[..., Any]) -> None:
    found = as_json("show", "--device")
    assert found["device"] == "cpu"
    assert [one["from_bytes"] for one in found["placings"]] == [0, 0, 0]
    assert "on cpu" in run("show", "--device").stdout
    assert "NAME, or --device" in run("show", code=2).stderr


def test_create_by_a_file(run: Run, as_json: Callable[..., Any], name: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"kind": "layer-norm", "normalized_shape": [2, 2], "weight": [1, 2, 3, 4]}))
    assert as_json("create", name, "--spec", file)["spec"]["weight"] == [1, 2, 3, 4]
    file.write_text(json.dumps({"kind": "layer-norm", "momentum": 1}))
    assert "momentum is none of LayerNorm's arguments" in run("create", f"{name}/2", "--spec", file, code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("standardize",), "num_features"),
        (("standardize", "--features", 0), "num_features is 0"),
        (("lp-norm", "--features", 3), "takes no --features"),
        (("standardize", "--set", "eps"), "expected key=value"),
        ((), "give a KIND or --spec FILE"),
        (("nothing",), "is not one of"),
    ],
)
def test_create_says_what_is_wrong(run: Run, name: str, arguments: tuple[object, ...], message: str) -> None:
    result = CliRunner().invoke(cli, ["create", name, *map(str, arguments)])
    assert result.exit_code in (1, 2)
    assert message in result.stderr


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_a_file_is_contributed_and_normalized(
    run: Run, as_json: Callable[..., Any], obs: str, tmp_path: Path, suffix: str
) -> None:
    assert as_json("show", obs)["stats"]["count"] == 400
    z = tmp_path / f"z{suffix}"
    assert as_json("normalize", obs, tmp_path / "x.npy", "-o", z)["rows"] == 400
    back = tmp_path / "back.npy"
    run("normalize", obs, z, "-o", back, "--inverse")
    np.testing.assert_allclose(np.load(back), X, rtol=1e-5)
    run("create", f"{obs}/z", "standardize", "--features", 3)
    counted = as_json("update", f"{obs}/z", z, z)
    assert (counted["rows"], counted["interrupted"]) == (800, False)
    stats = as_json("show", f"{obs}/z")["stats"]
    np.testing.assert_allclose(stats["mean"], 0, atol=1e-6)
    np.testing.assert_allclose(stats["std"], 1, atol=1e-6)


def test_batches_are_of_the_size_that_is_asked_for(
    run: Run, as_json: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", X)
    run("create", name, "batch-norm", "--features", 3)
    assert as_json("update", name, tmp_path / "x.npy", "--batch-size", 150)["batches"] == 3


def test_a_file_that_does_not_fit_leaves_nothing(run: Run, obs: str, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros((4, 5)))
    out = tmp_path / "out.npy"
    assert "input.shape[1] is 5" in run("normalize", obs, tmp_path / "y.npy", "-o", out, code=1).stderr
    assert "batch.shape[1] is 5" in run("update", obs, tmp_path / "y.npy", code=1).stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "y.npy"]
    same = tmp_path / "x.npy"
    assert "is the file that is read" in run("normalize", obs, same, "-o", same, code=1).stderr


def test_snapshots_and_drift(run: Run, as_json: Callable[..., Any], obs: str, tmp_path: Path) -> None:
    assert as_json("snapshot", obs, "before")["version"] == 2
    np.save(tmp_path / "shifted.npy", X + 1)
    run("update", obs, tmp_path / "shifted.npy")
    assert [json.loads(line)["tag"] for line in run("snapshots", obs, "--json").stdout.splitlines()] == ["before"]
    assert "before" in run("snapshots", obs).stdout
    drift = as_json("compare", obs, "before", "--limit", 2)
    assert (drift["base_version"], drift["version"], len(drift["features"])) == (2, 3, 2)
    assert "+0.2" in run("compare", obs, "before").stdout
    assert as_json("show", obs, "--snapshot", "before")["stats"]["count"] == 400
    restored = as_json("restore", obs, "before")
    assert (restored["version"], restored["count"]) == (4, 400)
    run("delete-snapshot", obs, "before")
    assert run("snapshots", obs, "--json").stdout == ""


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", ["standardize", "batch-norm", "by time", "layer-norm"])
def test_export_and_import_carry_everything_to_the_bit(
    run: Run, as_json: Callable[..., Any], name: str, tmp_path: Path, suffix: str, kind: str
) -> None:
    arguments = {
        "standardize": ("standardize", "--features", 3),
        "batch-norm": ("batch-norm", "--features", 3, "--set", "weight=[1, 2, 0.1]"),
        "by time": ("standardize", "--features", 3, "--set", "half_life=60"),
        "layer-norm": ("layer-norm", "--features", 3, "--set", "bias=[1, 2, 0.1]"),
    }[kind]
    run("create", name, *arguments)
    if kind != "layer-norm":
        np.save(tmp_path / "x.npy", X + 1e6)
        run("update", name, tmp_path / "x.npy", "--batch-size", 100)
    file, again = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    run("export", name, file)
    run("import", f"{name}/copy", file)
    run("export", f"{name}/copy", again)
    one, two = as_json("show", name), as_json("show", f"{name}/copy")
    for key in ("mean", "var", "min", "max", "count", "num_batches"):
        assert (one["stats"] or {}).get(key) == (two["stats"] or {}).get(key)
    assert one["spec"] == two["spec"]


def test_what_is_no_export_is_refused(run: Run, name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    (tmp_path / "b.safetensors").write_bytes(b"no")
    np.savez(tmp_path / "c.npz", normstats=np.array("{}"))
    for file in ("a.npz", "b.safetensors", "c.npz", "d.npz", "e.txt"):
        assert run("import", name, tmp_path / file, code=1).stderr.startswith("normstats: ")


def test_freeze_reset_and_delete(run: Run, as_json: Callable[..., Any], obs: str, tmp_path: Path) -> None:
    assert as_json("freeze", obs)["frozen"]
    assert "is frozen" in run("update", obs, tmp_path / "x.npy", code=1).stderr
    assert not as_json("unfreeze", obs)["frozen"]
    assert as_json("reset", obs, "--yes")["count"] == 0
    assert as_json("delete", obs, "--yes") == {"deleted": obs}
    told = json.loads(run("show", obs, "--json", code=1).stderr)
    assert told["error"]["code"] == "NOT_FOUND"
    assert told["error"]["reason"] == "NORMALIZER_NOT_FOUND"


def test_watch_prints_a_line_for_each_change(run: Run, obs: str) -> None:
    lines = run("watch", obs, "--for", 0.5, "--json").stdout.splitlines()
    assert [json.loads(line)["version"] for line in lines] == [2]
    assert "400 rows  mean" in run("watch", obs, "--for", 0.5).stdout


def test_no_server_is_one_sentence(run: Run) -> None:
    result = run("--timeout", 0.3, "ls", code=1, target="127.0.0.1:1")
    assert result.stderr.startswith("normstats: ")
    assert result.stderr.count("\n") == 1


def test_every_command_has_help_with_an_example() -> None:
    for command in cli.commands:
        if command == "serve":
            continue
        shown = CliRunner().invoke(cli, [command, "--help"])
        assert shown.exit_code == 0
        assert f"normstats {command}" in shown.output.replace("--target other:50051 ", ""), command


def started(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from normstats.cli import main; main()", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_stops_after_what_was_sent_and_says_how_much(
    run: Run, as_json: Callable[..., Any], name: str, server: ServerProcess, tmp_path: Path
) -> None:
    np.save(tmp_path / "many.npy", np.zeros((400_000, 2), np.float32))
    run("create", name, "standardize", "--features", 2)
    arguments = ("--target", server.target, "update", name, str(tmp_path / "many.npy"), "--batch-size", "10", "--json")
    process = started(*arguments)
    deadline = time.monotonic() + 30
    while as_json("show", name)["stats"]["count"] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    told = json.loads(out)
    assert told["interrupted"]
    assert 0 < told["rows"] < 400_000
    assert as_json("show", name)["stats"]["count"] == told["rows"]


def test_serve_becomes_the_server(tmp_path: Path) -> None:
    helped = started("serve", "--help")
    assert "--max-message-bytes" in helped.communicate(timeout=60)[0]
    store = f"sqlite:///{tmp_path / 'a.db'}"
    process = started("serve", "--listen", "127.0.0.1:0", "--http", "", "--store", store, "--log-format", "json")
    assert process.stderr is not None
    events = [json.loads(process.stderr.readline())["event"] for _ in range(2)]
    assert events == ["the store is new and empty", "serving"]
    process.terminate()
    assert process.wait(30) == 0


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from normstats import cli as package

    monkeypatch.setattr(package, "find_spec", lambda name: None if name == "pyarrow" else object())
    with pytest.raises(SystemExit, match="1"):
        package.main()
    assert "pip install 'normstats[cli]'" in capsys.readouterr().err
