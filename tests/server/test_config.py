"""Settings: flags over NORMSTATS_* variables over a TOML file; --help tells them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from normserver import __main__ as command
from normserver import config


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in config.Settings.model_fields:
        monkeypatch.delenv(f"NORMSTATS_{name.upper()}", raising=False)


def test_the_defaults_serve_this_machine_alone() -> None:
    settings = config.load([])
    assert (settings.listen, settings.http, settings.store) == (
        "127.0.0.1:50051",
        "127.0.0.1:9464",
        "sqlite:///normstats.db",
    )


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "normstats.toml"
    file.write_text('threads = 3\nlog_level = "debug"\ndrain_seconds = 1.5\n')
    monkeypatch.setenv("NORMSTATS_THREADS", "4")
    monkeypatch.setenv("NORMSTATS_LOG_LEVEL", "warning")
    settings = config.load(["--config", str(file), "--threads", "5"])
    assert (settings.threads, settings.log_level, settings.drain_seconds) == (5, "warning", 1.5)
    monkeypatch.setenv("NORMSTATS_CONFIG", str(file))
    assert config.load([]).drain_seconds == 1.5


@pytest.mark.parametrize(
    ("text", "message"),
    [("threads = 0", "threads"), ("thread = 2", "thread: Extra inputs"), ("threads =", "Invalid value")],
    ids=["out of range", "misspelt", "no TOML"],
)
def test_a_wrong_file_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "normstats.toml"
    file.write_text(text)
    assert command.main(["--config", str(file)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("normstats serve: ")
    assert message in told


def test_a_file_that_is_not_there_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config", "/nowhere.toml"]) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_connections_last_an_hour_unless_it_is_said_how_long() -> None:
    assert config.load([]).max_connection_age_seconds == 3600
    assert config.load(["--max-connection-age-seconds", "90.5"]).max_connection_age_seconds == 90.5
    for wrong in ("-1", "1e7", "nan"):
        with pytest.raises(ValidationError, match=r"max.connection.age.seconds"):
            config.load(["--max-connection-age-seconds", wrong])


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "192.0.2.1:50051", "example.com:50051"])
def test_to_be_reached_from_other_machines_must_be_said(address: str) -> None:
    with pytest.raises(ValidationError, match="say --insecure"):
        config.load(["--listen", address])
    with pytest.raises(ValidationError, match="say --insecure"):
        config.load(["--http", address])
    assert config.load(["--listen", address, "--insecure"]).listen == address


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/normstats.sock"])
def test_this_machine_needs_no_saying(address: str) -> None:
    assert config.load(["--listen", address]).listen == address


@pytest.mark.parametrize("address", ["50051", "127.0.0.1", "127.0.0.1:99999", ":50051"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ValidationError, match=r"is no HOST:PORT, such as 127\.0\.0\.1:50051"):
        config.load(["--listen", address])


@pytest.mark.parametrize("flags", [["--store", "mysql://a"], ["--store", "nothing"], ["--device", "cuda"]])
def test_what_this_server_cannot_do_is_one_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if flags[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert command.main([*flags, "--log-format", "json"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("normstats serve: --")
    assert told.count("\n") == 1


def test_help_tells_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    shown = capsys.readouterr().out
    for name, field in config.Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.description
