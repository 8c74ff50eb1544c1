from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResetCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESET_UNSPECIFIED: _ClassVar[ResetCode]
    RESET_CANCELLED: _ClassVar[ResetCode]
    RESET_REFUSED: _ClassVar[ResetCode]
    RESET_UNSUPPORTED: _ClassVar[ResetCode]
    RESET_INTERNAL: _ClassVar[ResetCode]
    RESET_PROTOCOL: _ClassVar[ResetCode]
    RESET_LIMIT: _ClassVar[ResetCode]
    RESET_UNREACHABLE: _ClassVar[ResetCode]
    RESET_LOST: _ClassVar[ResetCode]
    RESET_INVALID: _ClassVar[ResetCode]

class DutyKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DUTY_UNSPECIFIED: _ClassVar[DutyKind]
    DUTY_ACTIVE: _ClassVar[DutyKind]
    DUTY_STANDBY: _ClassVar[DutyKind]
    DUTY_DRAINING: _ClassVar[DutyKind]
RESET_UNSPECIFIED: ResetCode
RESET_CANCELLED: ResetCode
RESET_REFUSED: ResetCode
RESET_UNSUPPORTED: ResetCode
RESET_INTERNAL: ResetCode
RESET_PROTOCOL: ResetCode
RESET_LIMIT: ResetCode
RESET_UNREACHABLE: ResetCode
RESET_LOST: ResetCode
RESET_INVALID: ResetCode
DUTY_UNSPECIFIED: DutyKind
DUTY_ACTIVE: DutyKind
DUTY_STANDBY: DutyKind
DUTY_DRAINING: DutyKind

class Message(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("hello", "open", "data", "credit", "finish", "reset", "ping", "pong", "goodbye", "duty")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    DUTY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    open: Open
    data: Data
    credit: Credit
    finish: Finish
    reset: Reset
    ping: Ping
    pong: Pong
    goodbye: Goodbye
    duty: Duty
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., data: _Optional[_Union[Data, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., duty: _Optional[_Union[Duty, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "software", "capabilities", "instance", "host_boot_id", "streams", "peer_instance", "facts", "window", "settings", "started", "companions", "number", "draining", "epoch", "peer_epoch", "former_epoch")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    HOST_BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    PEER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    COMPANIONS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FORMER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    instance: bytes
    host_boot_id: str
    streams: _containers.RepeatedCompositeFieldContainer[StreamState]
    peer_instance: bytes
    facts: DeviceFacts
    window: int
    settings: Settings
    started: int
    companions: _containers.RepeatedScalarFieldContainer[bytes]
    number: int
    draining: bool
    epoch: int
    peer_epoch: int
    former_epoch: int
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., capabilities: _Optional[_Iterable[str]] = ..., instance: _Optional[bytes] = ..., host_boot_id: _Optional[str] = ..., streams: _Optional[_Iterable[_Union[StreamState, _Mapping]]] = ..., peer_instance: _Optional[bytes] = ..., facts: _Optional[_Union[DeviceFacts, _Mapping]] = ..., window: _Optional[int] = ..., settings: _Optional[_Union[Settings, _Mapping]] = ..., started: _Optional[int] = ..., companions: _Optional[_Iterable[bytes]] = ..., number: _Optional[int] = ..., draining: _Optional[bool] = ..., epoch: _Optional[int] = ..., peer_epoch: _Optional[int] = ..., former_epoch: _Optional[int] = ...) -> None: ...

class StreamState(_message.Message):
    __slots__ = ("stream", "delivered", "limit")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    delivered: int
    limit: int
    def __init__(self, stream: _Optional[int] = ..., delivered: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class DeviceFacts(_message.Message):
    __slots__ = ("os", "arch", "kernel", "os_image", "hostname", "machine_id", "boot_id", "cpus", "memory_bytes", "storage_bytes", "allow", "forward", "labels", "clock_unix_nanos", "agents")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    OS_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    OS_IMAGE_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    os: str
    arch: str
    kernel: str
    os_image: str
    hostname: str
    machine_id: str
    boot_id: str
    cpus: int
    memory_bytes: int
    storage_bytes: int
    allow: _containers.RepeatedScalarFieldContainer[str]
    forward: _containers.RepeatedCompositeFieldContainer[ForwardRule]
    labels: _containers.ScalarMap[str, str]
    clock_unix_nanos: int
    agents: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, os: _Optional[str] = ..., arch: _Optional[str] = ..., kernel: _Optional[str] = ..., os_image: _Optional[str] = ..., hostname: _Optional[str] = ..., machine_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., cpus: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., storage_bytes: _Optional[int] = ..., allow: _Optional[_Iterable[str]] = ..., forward: _Optional[_Iterable[_Union[ForwardRule, _Mapping]]] = ..., labels: _Optional[_Mapping[str, str]] = ..., clock_unix_nanos: _Optional[int] = ..., agents: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ForwardRule(_message.Message):
    __slots__ = ("host", "low", "high")
    HOST_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    host: str
    low: int
    high: int
    def __init__(self, host: _Optional[str] = ..., low: _Optional[int] = ..., high: _Optional[int] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("namespace", "name", "keepalive_seconds", "urls", "ca_bundle", "grace_seconds")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEEPALIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    URLS_FIELD_NUMBER: _ClassVar[int]
    CA_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    keepalive_seconds: int
    urls: _containers.RepeatedScalarFieldContainer[str]
    ca_bundle: bytes
    grace_seconds: int
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., keepalive_seconds: _Optional[int] = ..., urls: _Optional[_Iterable[str]] = ..., ca_bundle: _Optional[bytes] = ..., grace_seconds: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("stream", "window", "request")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    stream: int
    window: int
    request: Request
    def __init__(self, stream: _Optional[int] = ..., window: _Optional[int] = ..., request: _Optional[_Union[Request, _Mapping]] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("stream", "offset", "lane", "payload")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    stream: int
    offset: int
    lane: int
    payload: bytes
    def __init__(self, stream: _Optional[int] = ..., offset: _Optional[int] = ..., lane: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("stream", "delivered", "limit")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    stream: int
    delivered: int
    limit: int
    def __init__(self, stream: _Optional[int] = ..., delivered: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("stream", "offset")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    stream: int
    offset: int
    def __init__(self, stream: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("stream", "offset", "code", "reason")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stream: int
    offset: int
    code: ResetCode
    reason: str
    def __init__(self, stream: _Optional[int] = ..., offset: _Optional[int] = ..., code: _Optional[_Union[ResetCode, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: int
    def __init__(self, token: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: int
    def __init__(self, token: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason", "retry")
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    retry: bool
    def __init__(self, reason: _Optional[str] = ..., retry: _Optional[bool] = ...) -> None: ...

class Duty(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: DutyKind
    def __init__(self, kind: _Optional[_Union[DutyKind, str]] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("exec", "attach", "logs", "forward", "renew", "facts")
    EXEC_FIELD_NUMBER: _ClassVar[int]
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    exec: Exec
    attach: Attach
    logs: Logs
    forward: Forward
    renew: Renew
    facts: Facts
    def __init__(self, exec: _Optional[_Union[Exec, _Mapping]] = ..., attach: _Optional[_Union[Attach, _Mapping]] = ..., logs: _Optional[_Union[Logs, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ..., facts: _Optional[_Union[Facts, _Mapping]] = ...) -> None: ...

class Exec(_message.Message):
    __slots__ = ("argv", "stdin", "stdout", "stderr", "tty", "size")
    ARGV_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    argv: _containers.RepeatedScalarFieldContainer[bytes]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    size: Size
    def __init__(self, argv: _Optional[_Iterable[bytes]] = ..., stdin: _Optional[bool] = ..., stdout: _Optional[bool] = ..., stderr: _Optional[bool] = ..., tty: _Optional[bool] = ..., size: _Optional[_Union[Size, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("stdin", "stdout", "stderr", "tty", "size")
    STDIN_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    size: Size
    def __init__(self, stdin: _Optional[bool] = ..., stdout: _Optional[bool] = ..., stderr: _Optional[bool] = ..., tty: _Optional[bool] = ..., size: _Optional[_Union[Size, _Mapping]] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Logs(_message.Message):
    __slots__ = ("file", "unit", "follow", "previous", "timestamps", "tail_lines", "since_unix_nanos", "since_seconds", "limit_bytes")
    FILE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    TAIL_LINES_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    SINCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    file: str
    unit: str
    follow: bool
    previous: bool
    timestamps: bool
    tail_lines: int
    since_unix_nanos: int
    since_seconds: int
    limit_bytes: int
    def __init__(self, file: _Optional[str] = ..., unit: _Optional[str] = ..., follow: _Optional[bool] = ..., previous: _Optional[bool] = ..., timestamps: _Optional[bool] = ..., tail_lines: _Optional[int] = ..., since_unix_nanos: _Optional[int] = ..., since_seconds: _Optional[int] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class Facts(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Result(_message.Message):
    __slots__ = ("exit_code", "signal", "failure", "certificate", "facts", "success")
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    signal: int
    failure: Failure
    certificate: bytes
    facts: DeviceFacts
    success: Success
    def __init__(self, exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., certificate: _Optional[bytes] = ..., facts: _Optional[_Union[DeviceFacts, _Mapping]] = ..., success: _Optional[_Union[Success, _Mapping]] = ...) -> None: ...

class Success(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: ResetCode
    message: str
    def __init__(self, code: _Optional[_Union[ResetCode, str]] = ..., message: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("namespace", "name", "secret", "csr", "software")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    secret: bytes
    csr: bytes
    software: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., secret: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., software: _Optional[str] = ...) -> None: ...

class JoinAnswer(_message.Message):
    __slots__ = ("joined", "refused")
    JOINED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    joined: Joined
    refused: str
    def __init__(self, joined: _Optional[_Union[Joined, _Mapping]] = ..., refused: _Optional[str] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("certificate", "ca_bundle", "urls")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    CA_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    URLS_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    ca_bundle: bytes
    urls: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, certificate: _Optional[bytes] = ..., ca_bundle: _Optional[bytes] = ..., urls: _Optional[_Iterable[str]] = ...) -> None: ...
