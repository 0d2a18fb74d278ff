"""A server that identities call over TLS or mTLS, and their calls of any method."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.certificates import Authority
from tests.server_process import ServerProcess

Metadata = Sequence[tuple[str, str]]


class Caller(NamedTuple):
    """An identity's channel, and what its calls bring."""

    channel: grpc.Channel
    metadata: Metadata

    @property
    def stub(self) -> NormalizationServiceStub:
        return NormalizationServiceStub(self.channel)

    def ask(self, method: str, request: Message) -> Any:
        return getattr(self.stub, method)(request, metadata=self.metadata, timeout=30)

    def send(self, method: str, *requests: Message) -> tuple[list[Any], grpc.StatusCode]:
        """Call a method of any kind; all its answers, as far as they come within a second, and its code."""
        path = f"/{pb.DESCRIPTOR.services_by_name['NormalizationService'].full_name}/{method}"
        output = pb.DESCRIPTOR.services_by_name["NormalizationService"].methods_by_name[method].output_type.name
        call = self.channel.stream_stream(path, lambda one: one.SerializeToString(), getattr(pb, output).FromString)
        answers: list[Any] = []
        try:
            answers.extend(call(iter(requests), metadata=self.metadata, timeout=1))
        except grpc.RpcError as error:
            return answers, error.code()
        return answers, grpc.StatusCode.OK


class Site(NamedTuple):
    """A server, the authority of its certificate, and callers by their names. The name is the token, too."""

    server: ServerProcess
    authority: Authority
    callers: Mapping[str, Caller]


def stanza(name: str, lines: str) -> str:
    """An identity of the credentials file."""
    token = hashlib.sha256(name.encode()).hexdigest()
    return f'[[identity]]\nname = "{name}"\ntokens = ["sha256:{token}"]\ncertificates = ["{name}.example"]\n{lines}\n\n'


@contextmanager
def site(folder: Path, identities: Mapping[str, str], *, mtls: bool, flags: Sequence[str] = ()) -> Iterator[Site]:
    """A server of these identities, each with the lines that follow its name in the credentials file."""
    authority = Authority(folder)
    pair = authority.issue("server", "127.0.0.1", "localhost")
    file = folder / "credentials.toml"
    file.write_text("".join(stanza(name, lines) for name, lines in identities.items()))
    flags = [*flags, "--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--credentials", str(file)]
    if mtls:
        flags += ["--tls-client-ca", str(authority.path)]
    server = ServerProcess(folder, *flags).start()

    def caller(name: str) -> Caller:
        own = authority.issue(f"caller-{name}", f"{name}.example") if mtls else None
        secrets = own and own.key.read_bytes(), own and own.certificate.read_bytes()
        channel = grpc.secure_channel(
            server.target, grpc.ssl_channel_credentials(authority.path.read_bytes(), *secrets)
        )
        return Caller(channel, () if mtls else (("authorization", f"Bearer {name}"),))

    callers = {name: caller(name) for name in identities}
    try:
        yield Site(server, authority, callers)
    finally:
        for one in callers.values():
            one.channel.close()
        server.stop()
