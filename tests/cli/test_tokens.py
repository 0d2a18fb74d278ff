"""normstats token: what it writes, the server reads, and nobody can tell the token from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from normserver.access import credentials
from normserver.access.grants import Limits, Need, Scope
from normstats.cli.app import cli


def run(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["token", *arguments])
    assert result.exit_code == exit_code, result.output
    return result.output


def test_a_new_token_is_known_by_the_file_that_it_is_added_to(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    made = [
        json.loads(run("new", "--scope", "write", "--prefix", "robot/", "--prefix", "arm/", "--name", "robots",
                       "--calls-per-second", "50", "--producers-per-hour", "9", "--file", str(file), "--json")),
        json.loads(run("new", "--scope", "read", "--days", "30", "--file", str(file), "--json")),
    ]  # fmt: skip
    text = file.read_text()
    assert not any(one["token"] in text for one in made)
    assert file.stat().st_mode & 0o077 == 0
    identities = credentials.parse(text)
    robots, reader = (identities.with_token(one["token"]) for one in made)
    assert robots is not None
    assert robots.name == "robots"
    assert robots.limits == Limits(calls_per_second=50, producers_per_hour=9)
    assert [robots.may(Need(Scope.WRITE, name)) for name in ("robot/a", "arm/a", "leg/a")] == [True, True, False]
    assert reader is not None
    assert reader.may(Need(Scope.READ, "anything"))
    assert not reader.may(Need(Scope.WRITE, "anything"))
    assert reader.expires_at is not None
    listed = [json.loads(line) for line in run("ls", str(file), "--json").splitlines()]
    assert [one["name"] for one in listed] == ["robots", made[1]["name"]]


def test_without_a_file_it_prints_what_to_add() -> None:
    printed = run("new", "--scope", "admin", "--name", "me")
    token, _, rest = printed.partition("\n")
    known = credentials.parse(rest[rest.index("[[identity]]") :]).with_token(token)
    assert known is not None
    assert known.everywhere() is Scope.ADMIN


@pytest.mark.parametrize(
    "arguments",
    [("--scope", "root"), ("--scope", "read", "--prefix", 'a"'), ("--scope", "read", "--name", "a b"), ()],
)
def test_what_a_file_could_not_say_is_refused(arguments: tuple[str, ...]) -> None:
    run("new", *arguments, exit_code=2)


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    file = str(tmp_path / "credentials.toml")
    run("new", "--scope", "read", "--name", "a", "--file", file)
    assert "of that name already" in run("new", "--scope", "read", "--name", "a", "--file", file, exit_code=2)
