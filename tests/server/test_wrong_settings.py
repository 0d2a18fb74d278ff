"""Whatever a setting says that cannot be done, `normstats serve` ends with one sentence that names it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from normserver import __main__ as command
from normserver import config
from tests.certificates import Authority


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in config.Settings.model_fields:
        monkeypatch.delenv(f"NORMSTATS_{name.upper()}", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what settings may wrongly name; sockets, and ports that are in use, in `taken`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "words").write_text("these are words")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("")
    (tmp_path / "half.toml").write_text("threads = ")
    (tmp_path / "misspelt.toml").write_text("thraeds = 2")
    (tmp_path / "nobody.toml").write_text("[[identity]]\nname = 'a'\n")
    for name in ("one", "other"):
        Authority(tmp_path).issue(name, "localhost").key.chmod(0o600)
    return tmp_path


@pytest.fixture
def taken(here: Path) -> Iterator[dict[str, str]]:
    """Addresses that somebody else listens on."""
    four = socket.create_server(("127.0.0.1", 0))
    six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("socket")
    unix.listen()
    yield {
        "FOUR": f"127.0.0.1:{four.getsockname()[1]}",
        "LOCALHOST": f"localhost:{four.getsockname()[1]}",
        "SIX": f"[::1]:{six.getsockname()[1]}",
        "SOCKET": "unix:socket",
    }
    for one in (four, six, unix):
        one.close()


TLS = "--tls-cert one.pem --tls-key one.key"
# Flags, the exit code, and what the sentence says.
WRONG = [
    ("--listen FOUR", 1, "--listen FOUR: it is in use; stop what listens there"),
    ("--listen LOCALHOST", 1, "--listen LOCALHOST: it is in use"),
    ("--listen SIX", 1, "--listen SIX: it is in use"),
    ("--listen SOCKET", 1, "--listen SOCKET: a server listens there; stop it"),
    ("--listen unix:words", 1, "--listen unix:words: it is a file, and no socket"),
    ("--listen unix:nowhere/socket", 1, "--listen unix:nowhere/socket: there is no folder nowhere; make it"),
    (f"--listen unix:{'a' * 120}", 1, "a socket's path has at most 107 bytes"),
    ("--listen no.such.host.invalid:1 --insecure", 1, "--listen no.such.host.invalid:1: the host cannot be found"),
    ("--listen 192.0.2.1:5000 --insecure", 1, "--listen 192.0.2.1:5000: this machine has no such address"),
    ("--http FOUR", 1, "--http FOUR: it is in use"),
    ("--http SIX", 1, "--http SIX: it is in use"),
    ("--http unix:socket", 2, "http: 'unix:socket' is no HOST:PORT"),
    ("--health FOUR", 1, "--health FOUR: it is in use"),
    ("--health SIX", 1, "--health SIX: it is in use"),
    ("--health unix:socket", 2, "health: 'unix:socket' is no HOST:PORT"),
    ("--http 127.0.0.1:50051 --listen 127.0.0.1:50051", 1, "--http 127.0.0.1:50051: --listen has the same address"),
    ("--listen FOUR --processes 2 --store postgresql://h/d", 1, "--listen FOUR: it is in use"),
    ("--store sqlite:///nowhere/n.db", 1, "there is no folder HERE/nowhere; make it, or give another --store"),
    ("--store sqlite:////proc/n.db", 1, "/proc/n.db cannot be used: this process cannot write to /proc"),
    ("--store sqlite:///folder", 1, "HERE/folder is a folder; --store names a file, such as HERE/folder/normstats.db"),
    ("--store sqlite:///words", 1, "HERE/words is no SQLite file, and stays as it is; give another --store"),
    ("--store sqlite://", 1, "sqlite:// names no file"),
    ("--store nothing", 1, "--store 'nothing' is no URL, such as sqlite:///normstats.db or postgresql://"),
    ("--store mysql://a", 1, "--store mysql: expected sqlite:///PATH or postgresql://HOST/DATABASE"),
    ("--store postgresql://u:secret@h:port/d", 1, "--store 'postgresql://u:***@h:port/d' is no URL"),
    ("--store postgresql://u:secret@127.0.0.1:1/d", 1, "postgresql://u:***@127.0.0.1:1/d: connection failed"),
    ("--store postgresql://u:secret@no.such.host.invalid/d", 1, "failed to resolve host 'no.such.host.invalid'"),
    ("--tls-cert one.pem", 2, "--tls-cert and --tls-key go together"),
    ("--tls-cert none --tls-key one.key", 1, "--tls-cert none: No such file or directory; give a PEM file"),
    ("--tls-cert folder --tls-key one.key", 1, "--tls-cert folder: Is a directory"),
    ("--tls-cert empty --tls-key one.key", 1, "--tls-cert empty has no -----BEGIN CERTIFICATE-----"),
    ("--tls-cert one.pem --tls-key none", 1, "--tls-key none: No such file or directory"),
    ("--tls-cert one.key --tls-key one.pem", 1, "--tls-cert one.key has no -----BEGIN CERTIFICATE-----"),
    ("--tls-cert one.pem --tls-key other.key", 1, "--tls-key other.key is not the key of --tls-cert one.pem"),
    (f"{TLS} --tls-client-ca empty --credentials nobody.toml", 1, "--tls-client-ca empty has no -----BEGIN CERT"),
    ("--credentials nobody.toml", 1, "--credentials nobody.toml: identity.0.grants: Field required"),
    ("--credentials none", 1, "--credentials none: No such file or directory; give a file that this user can read"),
    ("--credentials folder", 1, "--credentials folder: Is a directory"),
    ("--credentials half.toml", 1, "--credentials half.toml: Invalid value"),
    ("--credentials bytes", 1, "--credentials bytes: 'utf-8' codec can't decode"),
    ("--config none", 2, "--config none: there is no such file"),
    ("--config folder", 2, "--config folder: there is no such file"),
    ("--config half.toml", 2, "--config half.toml is no TOML: Invalid value"),
    ("--config bytes", 2, "--config bytes is no TOML: 'utf-8' codec can't decode"),
    ("--config misspelt.toml", 2, "thraeds: Extra inputs are not permitted"),
    ("--device tpu", 2, "device: 'tpu' is no device; expected auto, cpu, cuda or cuda:N"),
    ("--device cpu:7", 2, "device: 'cpu:7' is no device; expected auto, cpu, cuda or cuda:N"),
    (
        "--threads two",
        2,
        "threads: Input should be a valid integer, unable to parse string as an integer; received 'two'",
    ),
    ("--drain-seconds -1", 2, "drain_seconds: Input should be greater than or equal to 0"),
    ("--nonsense", 2, "unrecognized arguments: --nonsense; normstats serve --help lists the flags"),
    ("--threads", 2, "argument --threads: expected one argument"),
    ("--advertise nowhere", 2, "advertise: 'nowhere' is no HOST:PORT"),
]


@pytest.mark.parametrize(("flags", "code", "sentence"), WRONG, ids=[flags for flags, _, _ in WRONG])
def test_a_wrong_setting_is_one_sentence(
    flags: str, code: int, sentence: str, here: Path, taken: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, address in (*taken.items(), ("HERE", str(here))):
        flags, sentence = flags.replace(name, address), sentence.replace(name, address)
    arguments = ["--log-format", "json", *flags.split()]
    for name, value in {"--listen": "127.0.0.1:0", "--http": "127.0.0.1:0", "--device": "cpu"}.items():
        arguments += [] if name in arguments else [name, value]
    assert command.main(arguments) == code
    out, told = capfd.readouterr()
    assert out == ""
    assert told.startswith("normstats serve: ")
    assert told.count("\n") == 1
    assert sentence in told
    assert "secret" not in told


def test_a_socket_that_was_left_behind_is_no_obstacle(here: Path) -> None:
    from normserver import addresses

    with socket.socket(socket.AF_UNIX) as left:
        left.bind("left")
        left.listen()
    addresses.check(config.load(["--listen", "unix:left", "--http", ""]))


@pytest.mark.parametrize("flags", [["--listen", "FOUR"], ["--listen", "SOCKET"], ["--health", "FOUR"]], ids=str)
def test_a_process_says_as_much_and_no_library_says_more(flags: list[str], here: Path, taken: dict[str, str]) -> None:
    arguments = ["--http", "127.0.0.1:0", *(taken.get(flag, flag) for flag in flags)]
    ended = subprocess.run(
        [sys.executable, "-m", "normserver", *arguments], capture_output=True, text=True, timeout=60, cwd=here
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"normstats serve: {flags[0]} {taken[flags[1]]}: ")
    assert ended.stderr.count("\n") == 1


LATE = """
import sys
from normserver import __main__ as command, addresses
addresses.check = lambda settings: None  # somebody takes the port after it was looked at
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("flag", ["--listen", "--health"])
def test_grpc_writes_nothing_where_a_port_is_taken_at_the_last_moment(
    flag: str, here: Path, taken: dict[str, str]
) -> None:
    arguments = ["--http", "", "--device", "cpu", "--listen", "127.0.0.1:0", flag, taken["FOUR"]]
    ended = subprocess.run([sys.executable, "-c", LATE, *arguments], capture_output=True, text=True, timeout=90)
    assert ended.returncode == 1
    told = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    (sentence,) = told
    assert sentence.startswith(f"normstats serve: {flag} {taken['FOUR']}: it cannot be listened on")
