"""Requests and answers as bytes: the only place that maps ``requests`` to the schema.

What a peer says is judged here once: every length has a cap, and whatever does
not parse, or is longer, or makes no sense is a ``RemoteViolation`` with one line
of reason. What this side says is cut to the same caps where that loses nothing
(a failure's message) and is a ``LocalMisuse`` elsewhere.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tether.errors import LocalMisuse, RemoteViolation, ResetCode
from tether.schema import tether_pb2 as schema
from tether.verbs.requests import (
    AskFacts,
    Attach,
    DeviceFacts,
    Exec,
    Exited,
    Failed,
    Forward,
    ForwardRule,
    Issued,
    Killed,
    Logs,
    Renew,
    Request,
    Result,
    Settings,
    Size,
    Succeeded,
)

#: The most bytes a request may have: a command line, mostly.
REQUEST_LIMIT = 1024 * 1024
#: The most bytes an answer may have; it travels as one record.
RESULT_LIMIT = 32 * 1024
#: The most bytes the facts of a device, or the settings for one, may have.
INTRODUCTION_LIMIT = 256 * 1024

#: The most words of a command line.
ARGUMENTS_LIMIT = 16384
#: The most bytes of a file's path, a unit's name, a host's name, a line for a person.
TEXT_LIMIT = 4096
#: The most bytes of a certificate, a signing request or a bundle of either.
PEM_LIMIT = 128 * 1024
#: The most seconds that sessions may outlive a link.
GRACE_LIMIT = 3600
#: The most bytes of an agent's alias.
INSTANCE_LIMIT = 16
#: The most entries of any list or map.
ENTRIES_LIMIT = 1024

_Parsed = TypeVar("_Parsed", bound=Message)

_SIZE_LIMIT = 0xFFFF
_PORT_LIMIT = 0xFFFF


# ---- requests ---------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """The bytes of what this side asks."""
    message = schema.Request()
    match request:
        case Exec():
            message.exec.argv.extend(request.argv)
            message.exec.stdin = request.stdin
            message.exec.stdout = request.stdout
            message.exec.stderr = request.stderr
            message.exec.tty = request.tty
            _put_size(message.exec.size, request.size)
            message.exec.SetInParent()
        case Attach():
            message.attach.stdin = request.stdin
            message.attach.stdout = request.stdout
            message.attach.stderr = request.stderr
            message.attach.tty = request.tty
            _put_size(message.attach.size, request.size)
            message.attach.SetInParent()
        case Logs():
            _put_logs(message.logs, request)
        case Forward():
            message.forward.host = request.host
            message.forward.port = request.port
            message.forward.SetInParent()
        case Renew():
            message.renew.csr = request.csr
            message.renew.SetInParent()
        case AskFacts():
            message.facts.SetInParent()
    encoded = message.SerializeToString()
    if len(encoded) > REQUEST_LIMIT:
        raise LocalMisuse(f"a request of {len(encoded)} bytes is longer than {REQUEST_LIMIT}")
    return encoded


def decode_request(encoded: bytes) -> Request | None:
    """What the peer asks; ``None`` is a verb that this side does not know."""
    _cap("request", len(encoded), REQUEST_LIMIT)
    message = _parsed(schema.Request(), encoded, "request")
    match message.WhichOneof("verb"):
        case "exec":
            _cap("argv", len(message.exec.argv), ARGUMENTS_LIMIT, "words")
            return Exec(
                argv=tuple(message.exec.argv),
                stdin=message.exec.stdin,
                stdout=message.exec.stdout,
                stderr=message.exec.stderr,
                tty=message.exec.tty,
                size=_size(message.exec.size) if message.exec.HasField("size") else None,
            )
        case "attach":
            return Attach(
                stdin=message.attach.stdin,
                stdout=message.attach.stdout,
                stderr=message.attach.stderr,
                tty=message.attach.tty,
                size=_size(message.attach.size) if message.attach.HasField("size") else None,
            )
        case "logs":
            return _logs(message.logs)
        case "forward":
            return Forward(
                host=_text("host", message.forward.host, 255),
                port=_number("port", message.forward.port, 1, _PORT_LIMIT),
            )
        case "renew":
            return Renew(_bytes("csr", message.renew.csr, PEM_LIMIT))
        case "facts":
            return AskFacts()
        case _:
            return None


def _put_logs(message: schema.Logs, request: Logs) -> None:
    message.SetInParent()
    if request.file:
        message.file = request.file
    elif request.unit:
        message.unit = request.unit
    message.follow = request.follow
    message.previous = request.previous
    message.timestamps = request.timestamps
    if request.tail_lines is not None:
        message.tail_lines = request.tail_lines
    if request.since_unix_nanos is not None:
        message.since_unix_nanos = request.since_unix_nanos
    if request.since_seconds is not None:
        message.since_seconds = request.since_seconds
    if request.limit_bytes is not None:
        message.limit_bytes = request.limit_bytes


def _logs(message: schema.Logs) -> Logs:
    return Logs(
        file=_text("file", message.file, TEXT_LIMIT),
        unit=_text("unit", message.unit, TEXT_LIMIT),
        follow=message.follow,
        previous=message.previous,
        timestamps=message.timestamps,
        tail_lines=message.tail_lines if message.HasField("tail_lines") else None,
        since_unix_nanos=message.since_unix_nanos if message.HasField("since_unix_nanos") else None,
        since_seconds=message.since_seconds if message.HasField("since_seconds") else None,
        limit_bytes=message.limit_bytes if message.HasField("limit_bytes") else None,
    )


# ---- answers ----------------------------------------------------------------


def encode_result(result: Result) -> bytes:
    """The bytes of an answer, which travel as one record on lane ``RESULT``."""
    message = schema.Result()
    match result:
        case Exited():
            message.exit_code = result.code & 0xFFFFFFFF
        case Killed():
            message.signal = result.signal
        case Failed():
            message.failure.code = int(result.code)  # type: ignore[assignment]  # an enum is an int on the wire
            message.failure.message = _cut(result.message)
            message.failure.SetInParent()
        case Succeeded():
            message.success.SetInParent()
        case Issued():
            message.certificate = result.certificate
        case DeviceFacts():
            _put_facts(message.facts, result)
    encoded = message.SerializeToString()
    if len(encoded) > RESULT_LIMIT:
        raise LocalMisuse(f"an answer of {len(encoded)} bytes is longer than {RESULT_LIMIT}")
    return encoded


def decode_result(encoded: bytes) -> Result:
    """What the peer answered."""
    _cap("result", len(encoded), RESULT_LIMIT)
    message = _parsed(schema.Result(), encoded, "result")
    match message.WhichOneof("outcome"):
        case "exit_code":
            return Exited(message.exit_code)
        case "signal":
            return Killed(_number("signal", message.signal, 1, 255))
        case "failure":
            return Failed(
                ResetCode.of(message.failure.code), _text("message", message.failure.message, TEXT_LIMIT)
            )
        case "success":
            return Succeeded()
        case "certificate":
            return Issued(_bytes("certificate", message.certificate, PEM_LIMIT))
        case "facts":
            return _facts(message.facts)
        case _:
            raise RemoteViolation("a result without an outcome that is known here")


# ---- small records and introductions ------------------------------------------


def encode_size(size: Size) -> bytes:
    """The bytes of a terminal's size, one record on lane ``RESIZE``."""
    message = schema.Size()
    _put_size(message, size)
    return message.SerializeToString() or _EMPTY_SIZE


def decode_size(encoded: bytes) -> Size:
    """A terminal's size off lane ``RESIZE``."""
    _cap("size", len(encoded), TEXT_LIMIT)
    return _size(_parsed(schema.Size(), encoded, "size"))


#: A size of 0x0 would have no bytes, and an empty record cannot travel: its width is spelt out.
_EMPTY_SIZE = b"\x08\x00"


def encode_facts(facts: DeviceFacts) -> bytes:
    """The bytes of what a device says about itself."""
    message = schema.DeviceFacts()
    _put_facts(message, facts)
    return message.SerializeToString()


def decode_facts(encoded: bytes) -> DeviceFacts:
    """What a device said about itself."""
    _cap("facts", len(encoded), INTRODUCTION_LIMIT)
    return _facts(_parsed(schema.DeviceFacts(), encoded, "facts"))


def encode_settings(settings: Settings) -> bytes:
    """The bytes of what the controller tells a device about itself."""
    return schema.Settings(
        namespace=settings.namespace,
        name=settings.name,
        keepalive_seconds=settings.keepalive_seconds,
        urls=list(settings.urls),
        ca_bundle=settings.ca_bundle,
        grace_seconds=settings.grace_seconds,
    ).SerializeToString()


def decode_settings(encoded: bytes) -> Settings:
    """What the controller told this device."""
    _cap("settings", len(encoded), INTRODUCTION_LIMIT)
    message = _parsed(schema.Settings(), encoded, "settings")
    _cap("urls", len(message.urls), 16, "entries")
    return Settings(
        namespace=_text("namespace", message.namespace, 253),
        name=_text("name", message.name, 253),
        keepalive_seconds=_number("keepalive_seconds", message.keepalive_seconds, 0, 3600),
        urls=tuple(_text("url", url, TEXT_LIMIT) for url in message.urls),
        ca_bundle=_bytes("ca_bundle", message.ca_bundle, PEM_LIMIT),
        grace_seconds=_number("grace_seconds", message.grace_seconds, 0, GRACE_LIMIT),
    )


def _put_facts(message: schema.DeviceFacts, facts: DeviceFacts) -> None:
    message.SetInParent()
    message.os = facts.os
    message.arch = facts.arch
    message.kernel = facts.kernel
    message.os_image = facts.os_image
    message.hostname = facts.hostname
    message.machine_id = facts.machine_id
    message.boot_id = facts.boot_id
    message.cpus = facts.cpus
    message.memory_bytes = facts.memory_bytes
    message.storage_bytes = facts.storage_bytes
    message.allow.extend(sorted(facts.allow))
    for rule in facts.forward:
        message.forward.add(host=rule.host, low=rule.low, high=rule.high)
    for key, value in sorted(facts.labels.items()):
        message.labels[key] = value
    message.clock_unix_nanos = facts.clock_unix_nanos
    message.agents.extend(sorted(facts.agents))


def _facts(message: schema.DeviceFacts) -> DeviceFacts:
    for name, entries in (
        ("allow", message.allow),
        ("forward", message.forward),
        ("labels", message.labels),
        ("agents", message.agents),
    ):
        _cap(name, len(entries), ENTRIES_LIMIT, "entries")
    return DeviceFacts(
        os=_text("os", message.os, 256),
        arch=_text("arch", message.arch, 256),
        kernel=_text("kernel", message.kernel, 256),
        os_image=_text("os_image", message.os_image, 256),
        hostname=_text("hostname", message.hostname, 256),
        machine_id=_text("machine_id", message.machine_id, 256),
        boot_id=_text("boot_id", message.boot_id, 256),
        cpus=message.cpus,
        memory_bytes=message.memory_bytes,
        storage_bytes=message.storage_bytes,
        allow=frozenset(_text("allow", verb, 64) for verb in message.allow),
        forward=tuple(_rule(rule) for rule in message.forward),
        labels={_text("label", key, 512): _text("label", message.labels[key], 512) for key in message.labels},
        clock_unix_nanos=message.clock_unix_nanos,
        agents=frozenset(_bytes("agent", instance, INSTANCE_LIMIT) for instance in message.agents),
    )


def _rule(message: schema.ForwardRule) -> ForwardRule:
    low = _number("forward.low", message.low, 0, _PORT_LIMIT)
    return ForwardRule(
        host=_text("forward.host", message.host, 255),
        low=low,
        high=_number("forward.high", message.high, low, _PORT_LIMIT),
    )


def _put_size(message: schema.Size, size: Size | None) -> None:
    if size is not None:
        message.width = min(max(size.width, 0), _SIZE_LIMIT)
        message.height = min(max(size.height, 0), _SIZE_LIMIT)
        message.SetInParent()


def _size(message: schema.Size) -> Size:
    return Size(
        _number("width", message.width, 0, _SIZE_LIMIT), _number("height", message.height, 0, _SIZE_LIMIT)
    )


# ---- judging ------------------------------------------------------------------


def _parsed(message: _Parsed, encoded: bytes, name: str) -> _Parsed:
    try:
        message.ParseFromString(encoded)
    except DecodeError:
        raise RemoteViolation(f"{name} does not parse") from None
    return message


def _cap(name: str, length: int, limit: int, unit: str = "bytes") -> None:
    if length > limit:
        raise RemoteViolation(f"{name} has {length} {unit}, more than {limit}")


def _text(name: str, text: str, limit: int) -> str:
    _cap(name, len(text), limit, "characters")
    return text


def _bytes(name: str, value: bytes, limit: int) -> bytes:
    _cap(name, len(value), limit)
    return value


def _number(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise RemoteViolation(f"{name} is {value}, not within {low} and {high}")
    return value


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
