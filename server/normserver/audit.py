"""Who made, changed or deleted what: one line for each such call that was done, at level info, by logger "audit"."""

from __future__ import annotations

import logging
from typing import Any

from normserver.calls import Call

log = logging.getLogger("normserver.audit")


def tell(call: Call, request: Any, reply: Any) -> None:
    """Log a call that was done, if it is of that kind."""
    done = _done(call.method, request, reply)
    if done is None:
        return
    event, facts = done
    name = "" if call.identity is None else call.identity.name
    log.info(event, extra={"identity": name, "caller": call.caller} | facts)


def _done(method: str, request: Any, reply: Any) -> tuple[str, dict[str, Any]] | None:
    match method:
        case "CreateNormalizer" if reply.created:
            return "created", {"normalizer": request.name}
        case "UpdateNormalizer":
            return _changed(request), {"normalizer": request.name, "version": reply.normalizer.version}
        case "DeleteNormalizer":
            return "deleted", {"normalizer": request.name}
        case "CreateSnapshot" | "DeleteSnapshot":
            event = "snapshot created" if method == "CreateSnapshot" else "snapshot deleted"
            return event, {"normalizer": request.normalizer, "tag": request.tag}
        case "RestoreSnapshot":
            facts = {"normalizer": request.normalizer, "tag": request.tag, "version": reply.normalizer.version}
            return "restored", facts
        case "BackUp":
            return "backed up", {}
    return None


def _changed(request: Any) -> str:
    """What one call did, in words: "frozen", "reset, affine parameters set"."""
    done = []
    if request.HasField("frozen"):
        done.append("frozen" if request.frozen else "thawed")
    if request.reset:
        done.append("reset")
    if request.HasField("weight") or request.HasField("bias"):
        done.append("affine parameters set")
    return ", ".join(done) or "left as it was"
