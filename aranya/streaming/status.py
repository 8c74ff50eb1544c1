"""A ``Status`` as the bytes that end an exec or attach.

From v4 on it is a ``metav1.Status`` as JSON; before, a plain text on failure only.

*Never 0*: a connection that dies before the status makes kubectl exit 0. Over SPDY
v4 and v5 the error stream is read to its end and decoded as a whole, so it can be
opened with the beginning of a failure (``OPENING``) that the real status later
completes. Of a repeated key the last one counts in Go. If we die in between, what
arrived is no JSON, and kubectl fails. WebSocket clients decode message by message,
so this does not work there.
"""

from __future__ import annotations

import json
from typing import Any, Final

from aranya.interfaces import Status

OPENING: Final = b'{"message":"the controller stopped before the command ended",'

_MESSAGE_LIMIT: Final = 2048


def to_json(status: Status) -> bytes:
    """The whole object."""
    return _encode(_fields(status))


def completion(status: Status) -> bytes:
    """The rest of the object that ``OPENING`` began; it says ``message`` anew in any case."""
    return _encode({"message": ""} | _fields(status))[1:]


def to_text(status: Status) -> bytes:
    """What v1 to v3 say: nothing on success, else why."""
    return b"" if status.success else _message(status).encode()


def _encode(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _fields(status: Status) -> dict[str, Any]:
    if status.success:
        return {"metadata": {}, "status": "Success"}
    failure: dict[str, Any] = {"metadata": {}, "status": "Failure", "message": _message(status)}
    if status.message:
        return failure | {"reason": "InternalError", "code": 500}
    cause = {"reason": "ExitCode", "message": str(_exit_code(status))}
    return failure | {"reason": "NonZeroExitCode", "details": {"causes": [cause]}}


def _exit_code(status: Status) -> int:
    # Clients parse eight bits; what does not fit must at least not become 0.
    return status.exit_code if 1 <= status.exit_code <= 255 else 255


def _message(status: Status) -> str:
    if status.message:
        # kubectl prints this as one line.
        return " ".join(status.message.split())[:_MESSAGE_LIMIT] or "failed"
    return f"command terminated with non-zero exit code: exit status {_exit_code(status)}"
