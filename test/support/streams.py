"""A kubectl client that a test plays by hand: what an exec, a forward or a log writes is remembered."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer

from aranya.interfaces import Status


class RecordingStreams:
    """The client's streams of an exec or attach (``ClientStreams``)."""

    def __init__(
        self, *, stdin: bool = True, stdout: bool = True, stderr: bool = True, tty: bool = False
    ) -> None:
        self.has_stdin = stdin
        self.has_stdout = stdout
        self.has_stderr = stderr
        self.tty = tty
        self.written: list[tuple[str, bytes]] = []
        self.statuses: list[Status] = []
        self.producer: IPushProducer | None = None
        self.stdin_paused = False

    def write_stdout(self, data: bytes) -> None:
        self.written.append(("stdout", data))

    def write_stderr(self, data: bytes) -> None:
        self.written.append(("stderr", data))

    def register_producer(self, producer: IPushProducer) -> None:
        assert self.producer is None
        self.producer = producer

    def unregister_producer(self) -> None:
        self.producer = None

    def pause_stdin(self) -> None:
        self.stdin_paused = True

    def resume_stdin(self) -> None:
        self.stdin_paused = False

    def end(self, status: Status) -> None:
        self.statuses.append(status)
        self.written.append(("end", b""))

    @property
    def status(self) -> Status:
        """The one status that the client was told."""
        assert len(self.statuses) == 1, self.statuses
        return self.statuses[0]


class RecordingForwardStream:
    """kubectl's side of one forwarded connection (``ForwardStream``)."""

    def __init__(self) -> None:
        self.received = b""
        self.ends: list[str] = []
        self.half_closed = False
        self.paused = False
        self.producer: IPushProducer | None = None

    def write(self, data: bytes) -> None:
        assert not self.ends
        self.received += data

    def register_producer(self, producer: IPushProducer) -> None:
        self.producer = producer

    def unregister_producer(self) -> None:
        self.producer = None

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def finish(self) -> None:
        self.half_closed = True

    def end(self, error: str = "") -> None:
        self.ends.append(error)


class RecordingLog:
    """The answer to a request for logs (``LogOutput``)."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.text = b""
        self.refusal = ""
        self.producer: IPushProducer | None = None

    def begin(self) -> None:
        self.calls.append("begin")

    def refuse(self, text: str) -> None:
        self.calls.append("refuse")
        self.refusal = text

    def write(self, data: bytes) -> None:
        assert self.calls == ["begin"], self.calls
        self.text += data

    def register_producer(self, producer: IPushProducer) -> None:
        self.producer = producer

    def unregister_producer(self) -> None:
        self.producer = None

    def end(self) -> None:
        self.calls.append("end")
