"""An exec or attach: the client's streams on one side, a channel of the device on the other.

The law of the end
    The client hears exactly one status. It comes from the device's result, and
    if there is none it is a failure: a reset, a lost link, a device that just
    finished, an endpoint that stops. No path leads from absence to exit code 0.
    Outputs and result share one order on the channel, so a status is written
    strictly after all output that came before it.

Pressure
    stdin: no credit on the channel pauses the client's stdin, nothing else. Sizes of
    the terminal have no brake of their own; meanwhile only the newest is kept.
    Output: a full client pauses the channel, and with it this one stream's credit.
    Nothing is held here, so a keystroke passes as it comes.
"""

from __future__ import annotations

from collections.abc import Callable

from aranya.interfaces import ClientStreams, Device, Status
from aranya.session import status as outcome
from aranya.session.pipe import Source
from tether.errors import LinkLost, LocalMisuse, Reason, RemoteViolation, ResetCode, StreamReset
from tether.link.interfaces import Channel, Lane
from tether.verbs.codec import decode_result, encode_size
from tether.verbs.requests import Attach, Exec, Size

_STDIN_END = b"\0"


class Execution:
    """One running exec or attach; hears the client (``ClientEvents``) and the device (``Receiver``)."""

    def __init__(
        self,
        device: Device,
        request: Exec | Attach,
        streams: ClientStreams,
        ended: Callable[[Execution], None] = lambda execution: None,
    ) -> None:
        """Open the session on ``device``; ``ended`` is called once, when the client has its status."""
        self._name = device.key.name
        self._streams = streams
        self._ended = ended
        self._over = False
        self._stdin_over = False
        self._late_size: Size | None = None
        self._stdin = Source(streams.pause_stdin, self._credit_granted)
        self._channel: Channel | None = None
        try:
            channel = device.open(request, self)
        except LinkLost as lost:
            self._end(outcome.of_reset(self._name, Reason(ResetCode.LOST, str(lost))))
            return
        except StreamReset as reset:
            self._end(outcome.of_reset(self._name, reset.reason))
            return
        except LocalMisuse as misuse:  # a command line beyond what the tether carries
            self._end(outcome.of_reset(self._name, Reason(ResetCode.INVALID, str(misuse))))
            return
        if self._over:  # the end may arrive while it is being opened
            channel.reset(Reason(ResetCode.CANCELLED, "the session ended"))
            return
        self._channel = channel
        channel.registerProducer(self._stdin, True)
        streams.register_producer(channel)

    @property
    def over(self) -> bool:
        """Whether the client has been told the end, or left."""
        return self._over

    def abort(self, reason: str) -> None:
        """End the session with a failure that says why: the endpoint stops."""
        if not self._over:
            self._end(outcome.of_abort(reason))
            self._drop(reason)

    # ---- the client -----------------------------------------------------------

    def stdin_received(self, data: bytes) -> None:
        """The client typed."""
        if self._channel is not None and not self._stdin_over:
            self._channel.write(data)

    def stdin_ended(self) -> None:
        """The client has no more stdin; resizes may still follow."""
        if self._channel is not None and not self._stdin_over:
            self._stdin_over = True
            self._channel.write(_STDIN_END, Lane.STDIN_END)

    def resized(self, size: Size) -> None:
        """The client's terminal has another size."""
        if self._stdin.held:
            self._late_size = size
        elif self._channel is not None:
            self._channel.write(encode_size(size), Lane.RESIZE)

    def client_gone(self, reason: str) -> None:
        """The client left; the device decides what becomes of the process."""
        if not self._over:
            self._over = True
            self._drop(outcome.one_line(reason) or "the client went away")
            self._ended(self)

    def _credit_granted(self) -> None:
        size, self._late_size = self._late_size, None
        if size is not None:
            self.resized(size)
        self._streams.resume_stdin()

    # ---- the device -----------------------------------------------------------

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Output, or the result."""
        if self._over:
            return
        if lane is Lane.MAIN:
            self._streams.write_stdout(data)
        elif lane is Lane.ERROR:
            # A terminal has one output; what the device says beside it goes there too.
            if self._streams.has_stderr:
                self._streams.write_stderr(data)
            elif self._streams.tty:
                self._streams.write_stdout(data)
        elif lane is Lane.RESULT:
            try:
                status = outcome.of_result(self._name, decode_result(data))
            except RemoteViolation as violation:
                status = outcome.of_reset(self._name, Reason(ResetCode.PROTOCOL, str(violation)))
            self._end(status)

    def finished(self) -> None:
        """The device is done; without a result before it that is a failure."""
        if not self._over:
            self._end(outcome.of_silence(self._name))
        channel, self._channel = self._channel, None
        if channel is None:
            return
        channel.unregisterProducer()
        if self._stdin.held:
            # stdin that nobody will read must not wait for credit that nobody will give.
            channel.reset(Reason(ResetCode.CANCELLED, "the process ended before it read its input"))
        else:
            channel.finish()

    def reset(self, reason: Reason) -> None:
        """The session ended before its time."""
        self._channel = None
        if not self._over:
            self._end(outcome.of_reset(self._name, reason))

    def closed(self) -> None:
        """The channel is over."""
        self._channel = None
        if not self._over:
            self._end(outcome.of_silence(self._name))

    # ---- the end ---------------------------------------------------------------

    def _end(self, status: Status) -> None:
        self._over = True
        self._streams.unregister_producer()
        self._streams.end(status)
        if self._channel is not None:
            # The channel's own end may still be on its way; nothing here may hold it up.
            self._channel.resumeProducing()
        self._ended(self)

    def _drop(self, reason: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.reset(Reason(ResetCode.CANCELLED, reason))
