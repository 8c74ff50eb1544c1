"""What happened on a device, in one line for the person behind kubectl.

Every text names the device and says what is wrong. kubectl puts ``error:``
before it and exits 1; none of these is ever a success.
"""

from __future__ import annotations

from aranya.interfaces import Status
from tether.errors import Reason, ResetCode
from tether.verbs.requests import Exited, Failed, Killed, Result, Succeeded

#: kubectl reads the code as an unsigned byte and calls anything else a protocol error.
_HIGHEST_EXIT_CODE = 255
_LINE_LIMIT = 1000

_WHAT_HAPPENED = {
    ResetCode.CANCELLED: "cancelled the session",
    ResetCode.REFUSED: "refused",
    ResetCode.UNSUPPORTED: "does not support this",
    ResetCode.INTERNAL: "failed",
    ResetCode.PROTOCOL: "broke the protocol",
    ResetCode.LIMIT: "is too busy",
    ResetCode.UNREACHABLE: "could not reach the target",
    ResetCode.LOST: "went offline",
    ResetCode.INVALID: "cannot do this",
}


def one_line(text: str) -> str:
    """The text without line ends and control characters, and of bounded length.

    Reasons may come from a device; what a terminal would interpret stays out.
    """
    printable = "".join(char if char.isprintable() else " " for char in text[: 2 * _LINE_LIMIT])
    return " ".join(printable.split())[:_LINE_LIMIT]


def offline(device: str) -> str:
    """The device has no link now."""
    return f"device {device} is offline"


def forbidden(device: str, verb: str) -> str:
    """The device owner's policy does not let this verb."""
    return f"device {device} refused: its owner does not allow {verb}"


def sentence(device: str, reason: Reason) -> str:
    """Why a session on the device ended before its time."""
    what = _WHAT_HAPPENED.get(reason.code, "ended the session")
    text = one_line(reason.text)
    return f"device {device} {what}: {text}" if text else f"device {device} {what}"


def of_reset(device: str, reason: Reason) -> Status:
    """The status of a session that was reset."""
    return Status(message=sentence(device, reason))


def of_abort(reason: str) -> Status:
    """The status of a session that this side ended; without a message it would be a success."""
    return Status(message=one_line(reason) or "the session was ended")


def of_silence(device: str) -> Status:
    """The status of a session whose device ended it without a result."""
    return Status(message=f"device {device} ended the session without telling the result")


def of_result(device: str, result: Result) -> Status:
    """The status of a session that ended with a result."""
    match result:
        case Succeeded():
            return Status()
        case Exited(code) if 0 <= code <= _HIGHEST_EXIT_CODE:
            return Status(exit_code=code)
        case Killed(signal) if 0 < signal < 128:
            return Status(exit_code=128 + signal)
        case Failed(code, message):
            return of_reset(device, Reason(code, message))
        case _:
            return Status(message=f"device {device} told a result that makes no sense here")
