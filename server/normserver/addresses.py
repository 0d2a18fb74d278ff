"""Whether a server can listen where it is told to: asked before anything heavy is loaded, as gRPC only logs why not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from normserver.config import Settings, split_address

# What a socket's address holds of a path: 108 bytes, the last of which is 0.
_LONGEST_PATH = 107
_WHY = {
    errno.EADDRINUSE: "it is in use; stop what listens there (another normstats serve?), or give another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; give one of its own, such as 127.0.0.1 or 0.0.0.0",
    errno.EACCES: "this user may not listen there; give a port above 1023",
}


def check(settings: Settings) -> None:
    """Raise what keeps the server from listening.

    Raises:
        OSError: says which setting, which address, why, and what to do.
    """
    users: dict[str, str] = {}
    for name in ("listen", "http", "health"):
        address = getattr(settings, name)
        if not address:
            continue
        if not address.endswith(":0") and address in users:
            raise OSError(f"--{name} {address}: --{users[address]} has the same address; give each its own")
        users[address] = name
        if why := _why_not(address, shared=name == "listen" and (settings.share_port or settings.processes > 1)):
            raise OSError(f"--{name} {address}: {why}")


@contextlib.contextmanager
def binding(name: str, address: str) -> Iterator[None]:
    """Bind an address within this; an error says which setting named it.

    Raises:
        OSError: somebody took the address since `check`.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise OSError(f"--{name} {address}: it cannot be listened on{reason}; give another address") from error


def _why_not(address: str, *, shared: bool) -> str:
    """Why an address cannot be listened on; empty if it can."""
    if address.startswith("unix:"):
        return _why_not_socket(Path(address.removeprefix("unix:")))
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        return f"the host cannot be found ({error}); give an address of this machine, such as 127.0.0.1 or 0.0.0.0"
    errors = [_bound(family, where, shared=shared) for family, _, _, _, where in found]
    # localhost may be an address that this machine has not, beside one that it has. One that is in use is another
    # server's: who calls localhost would reach that one.
    failed = next((error for error in errors if error == errno.EADDRINUSE), 0) or (0 if 0 in errors else errors[0])
    return _WHY.get(failed, os.strerror(failed)) if failed else ""


def _bound(family: int, where: tuple[object, ...], *, shared: bool) -> int:
    """Bind as gRPC and the pages do, and let go; the error's number, or 0."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            tried.bind(where)
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def _why_not_socket(path: Path) -> str:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        return f"a socket's path has at most {_LONGEST_PATH} bytes; give a shorter one"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; make it, or give another path"
    if not os.access(path.parent, os.W_OK):
        return f"this user cannot write to {path.parent}; give a path in a folder that he can write to"
    if not path.exists():
        return ""
    if not stat.S_ISSOCK(path.stat().st_mode):
        return "it is a file, and no socket; give another path"
    with socket.socket(socket.AF_UNIX) as tried:
        tried.setblocking(False)
        try:
            tried.connect(str(path))
        except ConnectionRefusedError:
            return ""  # whoever listened is gone
        except BlockingIOError:
            pass  # many wait already
        except OSError as error:
            return os.strerror(error.errno or errno.EINVAL)
    return "a server listens there; stop it, or give another path"
