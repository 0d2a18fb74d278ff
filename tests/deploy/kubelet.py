"""What a kubelet does with a server's pod, on this machine: its volumes on a read-only root, its user, its probes.

python -m tests.deploy.kubelet POD.json EMPTY_FOLDER     in mount, network and process namespaces of its own (`unshare`)

The root is this machine's, seen through an overlay that ends with the namespace: the disk stays as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

USER = 10001
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
# What a container has: its user, and none of root's capabilities.
_AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]
_AS_USER += ["--inh-caps=-all", "--bounding-set=-all"]


class Pod(NamedTuple):
    """A pod with one init container and one server."""

    image: dict[str, str]  # folders of this machine, by where the image has them
    volumes: dict[str, dict[str, str] | None]  # by path: files that are only read, or None for what may be written to
    initial: list[str]
    command: list[str]
    variables: dict[str, str]
    health_port: int
    start_seconds: float
    page: str
    call: list[str]  # what a client runs once the server is ready


def put_together(pod: Pod, folder: Path) -> None:
    """Make the root: this machine's, read-only, with the image's folders and the pod's volumes. It lies in a folder."""
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "tmpfs", str(folder))
    upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
    for layer in (upper, work, merged):
        layer.mkdir(mode=0o755)
    _mount("-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(merged))
    for path, source in pod.image.items():
        shutil.copytree(source, merged / path.lstrip("/"))
    for path in pod.volumes:
        (merged / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for installed in (Path(sys.base_prefix), Path(sys.prefix), Path.cwd()):
        for parent in installed.parents:  # an image's interpreter can be read by everybody
            (merged / str(parent).lstrip("/")).chmod(0o755)
    _mount("-o", "remount,ro", str(merged))
    for system in ("/proc", "/dev"):
        _mount("--rbind", system, f"{merged}{system}")
    for path, files in pod.volumes.items():
        volume = merged / path.lstrip("/")
        _mount("-t", "tmpfs", "tmpfs", str(volume))
        for name, text in (files or {}).items():
            (volume / name).write_text(text)
            os.chown(volume / name, 0, USER)
            (volume / name).chmod(0o440)
        os.chown(volume, 0, USER)  # fsGroup
        volume.chmod(0o2775)
        if files is not None:
            _mount("-o", "remount,ro", str(volume))
    os.chroot(merged)
    os.chdir("/")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def loopback_up() -> None:
    """Have 127.0.0.1, which a new network namespace does not."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))


def is_serving(port: int) -> bool:
    """What a gRPC probe asks for."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(told.status == health_pb2.HealthCheckResponse.SERVING)


def status_of(page: str) -> int:
    """What an HTTP probe asks for; kubelets check no certificate."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(page, context=unchecked, timeout=5) as answer:
        return int(answer.status)


def run(pod: Pod, folder: Path) -> dict[str, Any]:
    """Run it until it is ready, have it called, and stop it; what was seen."""
    loopback_up()
    put_together(pod, folder)
    variables = {"PATH": os.environ["PATH"]} | pod.variables

    def become(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*_AS_USER, *command], capture_output=True, text=True, env=variables, check=False, **more)

    initial = become(pod.initial)
    server = subprocess.Popen([*_AS_USER, *pod.command], stderr=subprocess.PIPE, text=True, env=variables, cwd="/tmp")
    try:
        deadline = time.monotonic() + pod.start_seconds
        while not (ready := is_serving(pod.health_port)) and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        seen = {
            "initial": initial.stderr,
            "ready": ready,
            "page": status_of(pod.page) if ready else None,
            "called": (called := become(pod.call)).stdout or called.stderr if ready else None,
            "written": become(["sh", "-c", "touch /opt/it /var/lib/it /home/it"]).stderr.splitlines(),
        }
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
        return seen | {"code": server.returncode, "log": log}
    finally:
        server.kill()


if __name__ == "__main__":
    print(json.dumps(run(Pod(**json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))))
