"""Commands that carry a normalizer elsewhere: export, import. All of its state, to the bit, in .npz or .safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from normstats.cli import output, spec_json
from normstats.cli.session import Command, Session, pass_session
from normstats.files import FileError
from normstats.results import RunningState
from normstats.v1 import resources_pb2 as pb
from normstats.wire import floats

_FORMAT = 1
_MOMENTS = ("count", "mean", "mean_low", "m2", "m2_low", "min", "max")
_PARAMETERS = ("weight", "bias")
_PATH = click.Path(dir_okay=False, path_type=Path)

Arrays = dict[str, npt.NDArray[np.float64]]


@click.command("export", cls=Command)
@click.argument("name")
@click.argument("file", type=_PATH)
@click.option("--snapshot", help="The statistics under this tag, instead of the present ones.")
@pass_session
def export(session: Session, name: str, file: Path, snapshot: str | None) -> None:
    """Write a normalizer's spec, parameters and whole state to FILE (.npz, .safetensors).

    \b
    normstats export robot/obs obs.safetensors
    normstats export robot/obs obs.npz --snapshot 2026-11-20
    """
    from normstats.specs import keeps_statistics

    with session.client() as client:
        normalizer = client.get(name)
        spec, arrays, state = normalizer.spec, dict[str, Any](), None
        if keeps_statistics(spec):
            state = normalizer.stats(snapshot=snapshot, include_state=True).state
    described: dict[str, Any] = {"format": _FORMAT, "name": name, "spec": spec_json.to_json(spec, arrays=False)}
    arrays |= {key: getattr(spec, key) for key in _PARAMETERS if getattr(spec, key, None) is not None}
    if state is not None:
        message = state.message
        arrays |= {f"moments.{key}": floats.from_bytes(getattr(message.moments, key)) for key in _MOMENTS}
        arrays["count"] = floats.from_bytes(message.count)
        described["num_batches"] = message.num_batches
        described["reference_time_microseconds"] = message.reference_time.ToMicroseconds()
    _write(file, arrays, json.dumps(described))
    session.emit({"normalizer": name, "file": str(file)}, f"{name} is in {file}")


@click.command("import", cls=Command)
@click.argument("name")
@click.argument("file", type=_PATH)
@click.option("--exist-ok", is_flag=True, help="Leave one of that name and spec as it is.")
@pass_session
def import_(session: Session, name: str, file: Path, exist_ok: bool) -> None:
    """Make a normalizer of what export wrote to FILE.

    \b
    normstats import robot/obs obs.safetensors
    normstats --target other:50051 import robot/obs obs.npz
    """
    arrays, text = _read(file)
    try:
        described = json.loads(text)
        spec_described = described["spec"] | {key: arrays[key] for key in _PARAMETERS if key in arrays}
        state = _state(described, arrays) if "count" in arrays else None
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{file} is no normalizer that export wrote: {error!r}") from error
    with session.client() as client:
        info = client.create(name, spec_json.from_json(spec_described), state=state, exist_ok=exist_ok).info
    session.emit(output.info_json(info), output.info_text(info))


COMMANDS = (export, import_)


def _state(described: dict[str, Any], arrays: Arrays) -> RunningState:
    message = pb.RunningState(
        moments=pb.Moments(**{key: floats.to_bytes(arrays[f"moments.{key}"]) for key in _MOMENTS}),
        count=floats.to_bytes(arrays["count"]),
        num_batches=described["num_batches"],
    )
    if described["reference_time_microseconds"]:
        message.reference_time.FromMicroseconds(described["reference_time_microseconds"])
    return RunningState(message)


def _write(file: Path, arrays: dict[str, Any], described: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    if file.suffix == ".npz":
        with partial.open("wb") as opened:
            np.savez(opened, normstats=np.array(described), **arrays)
    elif file.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({key: np.array(value) for key, value in arrays.items()}, partial, {"normstats": described})
    else:
        raise FileError(f"{file}: expected a name that ends in .npz or .safetensors")
    partial.replace(file)


def _read(file: Path) -> tuple[Arrays, str]:
    if not file.is_file():
        raise FileError(f"there is no file {file}")
    if file.suffix == ".npz":
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (ValueError, OSError) as error:
            raise FileError(f"{file}: {error}") from error
        if "normstats" not in arrays:
            raise FileError(f"{file} is no normalizer that export wrote")
        return arrays, str(arrays.pop("normstats"))
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="numpy") as opened:
                arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is no mapping)
                return arrays, (opened.metadata() or {}).get("normstats", "")
        except SafetensorError as error:
            raise FileError(f"{file}: {error}") from error
    raise FileError(f"{file}: expected a name that ends in .npz or .safetensors")
