"""A log that flows from a device into the answer of one HTTP request.

The law of the first event
    Once a byte or a success head is out, an error can only be appended to the log
    and kubectl still exits 0. So the answer is not begun before the device showed
    that it serves the log: data, an end, or a while of silence. A refusal that
    comes first is told as an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime

from aranya.interfaces import Device
from aranya.session import status as outcome
from tether.errors import LinkLost, Reason, RemoteViolation, ResetCode, StreamReset
from tether.link.interfaces import Channel, Lane
from tether.verbs.codec import decode_result
from tether.verbs.requests import Failed, Logs

#: A follower must see an answer begin although its log is silent; a refusal needs one round trip.
FOLLOW_PATIENCE = 1.0
#: Without follow nobody looks at the head; a large log on a slow device takes its time.
PATIENCE = 30.0


class LogOutput(Protocol):
    """Where a log goes: an HTTP answer that has not begun."""

    def begin(self) -> None:
        """Send the head of a success. Called at most once."""
        ...

    def refuse(self, text: str) -> None:
        """Answer with an error instead; the last call."""
        ...

    def write(self, data: bytes) -> None: ...
    def register_producer(self, producer: IPushProducer) -> None: ...
    def unregister_producer(self) -> None: ...

    def end(self) -> None:
        """The log is complete; the last call."""
        ...


class LogStream:
    """One request for logs, as its device hears it (``Receiver``)."""

    def __init__(
        self,
        device: Device,
        request: Logs,
        output: LogOutput,
        clock: IReactorTime,
        ended: Callable[[LogStream], None] = lambda stream: None,
    ) -> None:
        """Open the log on ``device``; ``ended`` is called once, when the output is over."""
        self._name = device.key.name
        self._output = output
        self._ended = ended
        self._over = False
        self._begun = False
        self._on_new_line = True
        self._channel: Channel | None = None
        self._silence: IDelayedCall | None = None
        try:
            channel = device.open(request, self)
        except LinkLost as lost:
            self._cut(Reason(ResetCode.LOST, str(lost)))
            return
        except StreamReset as reset:
            self._cut(reset.reason)
            return
        if self._over:
            channel.reset(Reason(ResetCode.CANCELLED, "the log ended"))
            return
        self._channel = channel
        output.register_producer(channel)
        if not self._begun:
            patience = FOLLOW_PATIENCE if request.follow else PATIENCE
            self._silence = clock.callLater(patience, self._begin)

    @property
    def over(self) -> bool:
        """Whether the client has been told the end, or left."""
        return self._over

    def client_gone(self) -> None:
        """The client left."""
        if not self._over:
            self._finish()
            self._drop("the client went away")

    def abort(self, reason: str) -> None:
        """End the log and say why: the endpoint stops."""
        if not self._over:
            self._tell(outcome.one_line(reason))
            self._drop(reason)

    # ---- the device -----------------------------------------------------------

    def data_received(self, lane: Lane, data: bytes) -> None:
        """A piece of the log, or how reading it went."""
        if self._over or not data:
            return
        if lane is Lane.MAIN:
            self._begin()
            self._on_new_line = data.endswith(b"\n")
            self._output.write(data)
        elif lane is Lane.RESULT:
            try:
                result = decode_result(data)
            except RemoteViolation as violation:
                self._cut(Reason(ResetCode.PROTOCOL, str(violation)))
                return
            if isinstance(result, Failed):
                self._cut(Reason(result.code, result.message))

    def finished(self) -> None:
        """The whole log was told."""
        if not self._over:
            self._begin()
            self._finish()
            self._output.end()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.finish()

    def reset(self, reason: Reason) -> None:
        """The log ended before its time."""
        self._channel = None
        self._cut(reason)

    def closed(self) -> None:
        """The channel is over."""
        self._channel = None
        self._cut(Reason(ResetCode.UNSPECIFIED, "no reason given"))

    # ---- the answer -------------------------------------------------------------

    def _begin(self) -> None:
        self._quiet()
        if not self._begun:
            self._begun = True
            self._output.begin()

    def _cut(self, reason: Reason) -> None:
        if not self._over:
            self._tell(outcome.sentence(self._name, reason))

    def _tell(self, text: str) -> None:
        self._finish()
        if not self._begun:
            self._output.refuse(text)
            return
        line = b"aranya: log stream cut: " + text.encode("utf-8", "replace") + b"\n"
        self._output.write(line if self._on_new_line else b"\n" + line)
        self._output.end()

    def _finish(self) -> None:
        self._over = True
        self._quiet()
        self._output.unregister_producer()
        if self._channel is not None:
            self._channel.resumeProducing()
        self._ended(self)

    def _quiet(self) -> None:
        silence, self._silence = self._silence, None
        if silence is not None and silence.active():
            silence.cancel()

    def _drop(self, reason: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.reset(Reason(ResetCode.CANCELLED, reason))
