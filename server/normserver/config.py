"""Settings, from flags, NORMSTATS_* variables and a TOML file, in that order of precedence."""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

_HELP = """Serve normalization and running statistics over gRPC.

Every setting is a flag, a NORMSTATS_* variable (--max-message-bytes: NORMSTATS_MAX_MESSAGE_BYTES) and a key of the TOML
file that --config names (max_message_bytes = 1048576). A flag wins over a variable, a variable over the file.

Example: normstats serve --listen 127.0.0.1:50051 --store sqlite:///normstats.db
"""


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _in_seconds(value: Any) -> Any:
    """What "500ms", "10s", "5m", "24h" and "7d" are in seconds; all else as it is."""
    if isinstance(value, str) and (found := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhd])\s*", value)):
        return float(found[1]) * _UNITS[found[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_in_seconds)]


class Settings(BaseSettings):
    """Every setting, with its default, its bounds and what it is for."""

    model_config = SettingsConfigDict(
        env_prefix="NORMSTATS_",
        cli_prog_name="normstats serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,  # argparse would print its usage, 30 lines, before what is wrong
        extra="forbid",
    )

    config: Path | None = Field(None, description="TOML file with settings.")
    listen: str = Field("127.0.0.1:50051", description="HOST:PORT of gRPC, or unix:PATH. Port 0 picks a free one.")
    http: str = Field(
        "127.0.0.1:9464", description="HOST:PORT of console, /metrics, /healthz and /readyz; empty for none."
    )
    http_max_connections: int = Field(
        1024,
        ge=1,
        description="Connections to --http at a time. One more closes the oldest on which no caller was recognized, or "
        "the one that is idle longest.",
    )
    http_max_connections_per_address: int = Field(
        256, ge=1, description="The same of one address; of a network of 64 bits, if that is of IPv6."
    )
    http_request_timeout: Seconds = Field(
        10,
        gt=0,
        description="How long a connection to --http may take to encrypt and to send the headers of a request, and how "
        "long the body then may take: 10s, 1m.",
    )
    http_idle_timeout: Seconds = Field(
        60, gt=0, description="How long a connection to --http may stay open between two requests: 60s, 5m."
    )
    health: str = Field(
        "",
        description="HOST:PORT of grpc.health.v1 alone, in plaintext, for probes; it answers however busy this is.",
    )
    store: str = Field(
        "sqlite:///normstats.db",
        description="Where normalizers are kept: sqlite:///PATH for one server, or "
        "postgresql://USER:PASSWORD@HOST/DATABASE for as many as you like.",
    )
    store_must_exist: bool = Field(
        False, description="Refuse to start where --store does not exist yet, instead of making a new, empty one."
    )
    advertise: str = Field(
        "",
        description="HOST:PORT at which clients reach this very server, and no other of the same store: rounds of one "
        "group meet at one server. By default the address that it listens on.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes on this machine that share --listen; more than one need PostgreSQL. Each has pages and "
        "health of its own, at ports counted up from --http and --health.",
    )
    share_port: bool = Field(
        False,
        description="Let other servers listen on the same port, and have another of one's own beside it, which is "
        "advertised. --processes sees to it.",
    )
    device: str = Field(
        "auto",
        description="Where to compute: auto (CUDA if there is any), cpu, cuda or cuda:N.",
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the server's certificate and what it was issued by; read again when it changes."
    )
    tls_key: Path | None = Field(None, description="PEM file of its key.")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the authorities that callers' certificates must come from (mTLS)."
    )
    credentials: Path | None = Field(
        None,
        description="TOML file of who may do what, by the hashes of tokens and the names in certificates; read again "
        "when it changes. normstats token makes it. Without it everybody may do everything.",
    )
    insecure: bool = Field(
        False, description="Listen beyond this machine although callers are not authenticated or nothing is encrypted."
    )
    reflection: bool = Field(False, description="Offer gRPC server reflection.")
    shared_memory: bool = Field(
        False,
        description="Lend memory to callers on this machine, whose tensors are then normalized where they are. Needs "
        "--listen unix:PATH; the same user and process namespace.",
    )
    shared_memory_bytes: int = Field(
        2**31, ge=2**16, description="The most memory that --shared-memory lends to all callers together."
    )
    threads: int = Field(
        2, ge=1, le=64, description="Threads that compute; each may use several cores for a large tensor."
    )
    max_message_bytes: int = Field(
        64 * 2**20, ge=2**16, le=2**31 - 1, description="The largest message taken. Larger tensors come in chunks."
    )
    max_metadata_bytes: int = Field(
        16384, ge=1024, le=2**20, description="The most metadata taken with a call; more is refused."
    )
    max_connections: int = Field(
        16384,
        ge=1,
        description="Connections of callers at a time; calls on more are refused. One caller (an identity; without "
        "--credentials an address) may have a quarter of this, of --max-streams and of --max-calls. Connections "
        "without a call are closed after 60 s; 512 of them at a time are kept beside these.",
    )
    max_connection_age_seconds: float = Field(
        3600,
        ge=0,
        le=10**6,
        description="End a connection after so long, give or take a tenth, so that its caller makes another and a new "
        "server gets work. What is under way has --drain-seconds. 0: never. Not for a unix socket.",
    )
    max_streams_per_connection: int = Field(
        1024, ge=1, description="Calls at a time on one connection; the caller's end keeps more waiting."
    )
    max_streams: int = Field(16384, ge=1, description="Streams open at a time, in all; more are refused.")
    max_calls: int = Field(16384, ge=1, description="Unary calls under way at a time, in all; more are refused.")
    max_memory_bytes: int = Field(
        2**30,
        ge=2**20,
        description="Requests and replies of unary calls in memory; while there is more, calls are refused before "
        "their messages are read.",
    )
    max_stream_bytes: int = Field(
        32 * 2**20,
        ge=2**20,
        description="What messages of all streams may hold until they are answered; beyond it, senders wait.",
    )
    default_deadline_seconds: float = Field(
        300, gt=0, description="How long a unary call may take whose caller gave no deadline."
    )
    max_queued_normalizations: int = Field(
        256, ge=1, description="Normalizations that may wait for the device; more are refused."
    )
    max_pending_contributions: int = Field(
        8192, ge=1, description="Contributions that may wait for their commit; more are refused."
    )
    max_normalizers_per_identity: int = Field(
        10_000,
        ge=0,
        description="How many normalizers an identity may have made, unless the credentials file says otherwise. 0: no "
        "limit.",
    )
    max_stored_bytes_per_identity: int = Field(
        4 * 2**30,
        ge=0,
        description="What the normalizers and snapshots that an identity made may take in the store, 64 bytes a "
        "feature, unless the credentials file says otherwise. 0: no limit.",
    )
    max_new_producers_per_hour: int = Field(
        36_000,
        ge=0,
        description="How many new producer ids an identity may bring in an hour, all of them at once too, unless the "
        "credentials file says otherwise. 0: no limit.",
    )
    forget_producers_after_hours: float = Field(
        24, gt=0, description="Forget a producer's sequences when it was idle for so long."
    )
    drain_seconds: float = Field(20, ge=0, description="How long calls may still run after SIGTERM or SIGINT.")
    traces: bool = Field(
        False,
        description="Send traces by OTLP over HTTP, to where OTEL_EXPORTER_OTLP_ENDPOINT says; OTEL_TRACES_SAMPLER and "
        "OpenTelemetry's other variables hold too. Needs normstats[traces].",
    )
    log_format: Literal["auto", "human", "json"] = Field(
        "auto", description="Lines for people or for machines; auto: for people on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")
    log_calls_per_second: int = Field(
        100, ge=0, description="At level debug each call is a line, at most so many a second."
    )

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is None:
            raise ValueError(f"{value!r} is no device; expected auto, cpu, cuda or cuda:N")
        return value

    @field_validator("listen", "http", "health", "advertise")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        if value and not (info.field_name in ("listen", "advertise") and value.startswith("unix:")):
            split_address(value)
        return value

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together; one is missing")
        if self.tls_client_ca is not None and (self.tls_cert is None or self.credentials is None):
            raise ValueError(
                "--tls-client-ca needs --tls-cert, --tls-key and --credentials, which say whose certificate may do what"
            )
        return self

    @model_validator(mode="after")
    def _stay_on_this_machine(self) -> Settings:
        if self.insecure or (self.tls_cert is not None and self.credentials is not None):
            return self
        missing = "nothing is encrypted" if self.tls_cert is None else "callers are not authenticated"
        for flag, address in (("listen", self.listen), ("http", self.http)):
            if not is_local(address):
                raise ValueError(
                    f"--{flag} {address} can be reached from other machines, and {missing}: listen on 127.0.0.1, give "
                    "--tls-cert, --tls-key and --credentials, or say --insecure if the network keeps strangers out"
                )
        return self

    @model_validator(mode="after")
    def _memory_by_a_socket(self) -> Settings:
        if self.shared_memory and not self.listen.startswith("unix:"):
            raise ValueError(
                f"--shared-memory is for callers on this machine; --listen {self.listen} takes others: "
                "say --listen unix:PATH"
            )
        return self

    @model_validator(mode="after")
    def _one_process_per_file(self) -> Settings:
        if self.processes > 1 and self.store.startswith("sqlite"):
            raise ValueError(
                f"--processes {self.processes} needs a store that they can share: an SQLite file serves one process; "
                "give --store postgresql://..."
            )
        if self.processes > 1 and self.listen.startswith("unix:"):
            raise ValueError(f"--processes {self.processes} share a port; --listen {self.listen} is a socket of one")
        return self


def load(arguments: list[str]) -> Settings:
    """The settings of a command line, this process's environment and the file that either names.

    Raises:
        pydantic.ValidationError: a setting is wrong.
        OSError, ValueError: the file cannot be read, or is no TOML; a flag is unknown.
        SystemExit: --help was asked for.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", default=os.environ.get("NORMSTATS_CONFIG"))
    config = finder.parse_known_args(arguments)[0].config
    if config is not None:
        _check_file(config)

    class Loaded(Settings):
        __doc__ = _HELP

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
                settings_cls, cli_parse_args=arguments, formatter_class=argparse.RawDescriptionHelpFormatter
            )
            return flags, env_settings, TomlConfigSettingsSource(settings_cls, config)

    try:
        return Loaded()
    except SettingsError as error:
        wrong = str(error).removeprefix("error parsing CLI: ")
        raise ValueError(f"{wrong}; normstats serve --help lists the flags") from error


def _check_file(config: str) -> None:
    """Raise what is wrong with a file of settings, beside the settings: its own errors do not name it."""
    if not Path(config).is_file():
        raise FileNotFoundError(f"--config {config}: there is no such file")
    try:
        tomllib.loads(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"--config {config}: {error.strerror}; give a file that this user can read") from error
    except ValueError as error:
        raise ValueError(f"--config {config} is no TOML: {error}") from error


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT, taken apart; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is no HOST:PORT, such as 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_local(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if not address or address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
