"""Attach: everyone joins the device's one long-lived login shell.

The shell belongs to the agent, not to who is attached: a lost link, a detach or
the end of somebody's stdin leave it as it is. It starts with the first attach,
and again with the first attach after it exited.

The end of stdin
    kubectl 1.36 knows the detach keys itself: it swallows them, ends its stdin and
    waits for the outputs to end, as they do with containerd. So the end of a
    terminal's stdin is a detach. Without a terminal (commands from a pipe) it is
    the end of typing only, and the output goes on.

Who sees what
    Everyone attached sees all output and may type. The terminal is as large as
    the smallest window of those who have a terminal and told its size. Who
    comes later is shown the last ``SCROLLBACK`` bytes first.

Slow readers
    While *all* who are attached are slow, the shell waits for them, as it would
    for one slow terminal, and no byte is lost. While anyone keeps up, the shell
    goes on: a slow one is ``BACKLOG`` bytes behind at most, then its backlog is
    dropped and a line says so. With nobody attached the shell never waits.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from arhat.executor.ending import Valve, cannot_start, conclude
from arhat.executor.environment import Account, CannotRun, login_shell
from arhat.executor.hangup import Hangups
from arhat.executor.scrollback import Scrollback
from arhat.executor.terminal import DEFAULT_SIZE, Terminal, known
from arhat.interfaces import ProcessHost
from tether.errors import Reason, RemoteViolation, ResetCode
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.codec import decode_size
from tether.verbs.requests import Attach, Result, Size, Succeeded

#: Bytes of output that who attaches is shown.
SCROLLBACK = 256 * 1024

#: Bytes that one slow reader may be behind, beside what its channel holds.
BACKLOG = 256 * 1024

#: Seconds that a Ctrl-P waits for its Ctrl-Q.
DETACH_PATIENCE = 1.0

DROPPED = b"\r\n[arhat: output dropped]\r\n"
RESPAWNED = b"[arhat: the shell had exited; this is a new one]\r\n"

_CTRL_P, _CTRL_Q = b"\x10", b"\x11"


class SharedShell:
    """The device's one login shell; the ``Starter`` of ``Attach``."""

    _log = Logger()

    def __init__(self, host: ProcessHost, account: Account, hangups: Hangups) -> None:
        self._host = host
        self._account = account
        self._hangups = hangups
        self._shell: Terminal | None = None
        self._running = True
        self._had_one = False
        self._scrollback = Scrollback(SCROLLBACK)
        self._attached: list[Attachment] = []
        self._size = DEFAULT_SIZE
        self._typing_held = False

    def __call__(self, request: Attach, channel: Channel) -> Receiver:
        """Join ``channel`` to the shell, which is started if it does not run."""
        lane = Lane.MAIN if request.stdout else None
        if self._shell is None:
            try:
                self._start(request.size if request.tty else None)
            except CannotRun as why:
                return cannot_start(channel, why.code, why.text, lane)
            except OSError as why:
                text = f"arhat: cannot start the shell: {(why.strerror or str(why)).lower()}"
                self._log.warn("stream {stream}: {text}", stream=channel.stream, text=text)
                return cannot_start(channel, 126, text, lane)
        attachment = Attachment(self, self._host, request, channel)
        self._attached.append(attachment)
        if self._typing_held:
            attachment.hold()
        self.fit()
        attachment.join(self._scrollback.replay())
        self.breathe()
        return attachment

    def stop(self) -> None:
        """Hang the shell up, as the agent stops; whoever is attached ends."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.hang_up()
        attached, self._attached = self._attached, []
        for attachment in attached:
            attachment.conclude()

    # -- from the shell

    def terminal_output(self, data: bytes) -> None:
        """The shell wrote: remember it, show it to everyone."""
        self._scrollback.add(data)
        for attachment in list(self._attached):
            attachment.show(data)
        self.breathe()

    def terminal_ended(self, result: Result) -> None:
        """The shell exited: so do all who are attached."""
        self._shell = None
        attached, self._attached = self._attached, []
        for attachment in attached:
            attachment.conclude()

    def hold_input(self) -> None:
        """The shell's terminal takes no more input for now."""
        self._typing_held = True
        for attachment in self._attached:
            attachment.hold()

    def take_input(self) -> None:
        """It does again."""
        self._typing_held = False
        for attachment in self._attached:
            attachment.release()

    # -- from those attached

    def type(self, keys: bytes) -> None:
        """Somebody typed."""
        if self._shell is not None:
            self._shell.type(keys)

    def leave(self, attachment: Attachment) -> None:
        """Somebody is not attached any more."""
        if attachment in self._attached:
            self._attached.remove(attachment)
            self.fit()
            self.breathe()

    def fit(self) -> None:
        """Make the terminal as large as the smallest window."""
        sizes = [attachment.size for attachment in self._attached if attachment.size is not None]
        if sizes and self._shell is not None:
            size = Size(min(size.width for size in sizes), min(size.height for size in sizes))
            if size != self._size:
                self._size = size
                self._shell.resize(size)

    def breathe(self) -> None:
        """Let the shell run unless all who are attached are slow."""
        running = not self._attached or any(not attachment.slow for attachment in self._attached)
        if self._shell is not None and running != self._running:
            self._running = running
            if running:
                self._shell.resume()
            else:
                self._shell.pause()

    def _start(self, size: Size | None) -> None:
        self._size = size if size is not None and known(size) else DEFAULT_SIZE
        self._running = True
        self._typing_held = False
        plan = login_shell(self._account)
        self._shell = Terminal.start(self._host, self._hangups, plan, self._size, self)
        self._scrollback.clear()
        if self._had_one:
            self._scrollback.add(RESPAWNED)
        self._had_one = True


class Attachment:
    """One who is attached: a channel to the shared shell."""

    def __init__(self, shared: SharedShell, clock: IReactorTime, request: Attach, channel: Channel) -> None:
        self._shared = shared
        self._clock = clock
        self._channel = channel
        self._tty = request.tty
        self._takes_input = request.stdin
        self._gives_output = request.stdout
        self._here = True
        self._held_key: IDelayedCall | None = None
        self._backlog = bytearray()
        self._dropped = False
        self.slow = False
        self.size: Size | None = request.size if self._counts(request.size) else None

    # -- from the shell

    def join(self, replay: bytes) -> None:
        """Begin: show what was before, then whatever comes."""
        self._channel.registerProducer(Valve(self._became_slow, self._caught_up), True)
        self.show(replay)

    def show(self, data: bytes) -> None:
        """Pass output on, or keep it while the client reads nothing."""
        if not self._here or not self._gives_output:
            return
        if not self.slow:
            self._channel.write(data)
            return
        self._backlog += data
        if len(self._backlog) > BACKLOG:
            self._backlog.clear()
            self._dropped = True

    def conclude(self) -> None:
        """The shell is over: show the rest and end well."""
        if self._here:
            self._gone()
            self._flush()
            conclude(self._channel, Succeeded())

    def hold(self) -> None:
        """The shell takes no more input for now."""
        self._channel.pauseProducing()

    def release(self) -> None:
        """The shell takes input again."""
        self._channel.resumeProducing()

    # -- from the client

    def data_received(self, lane: Lane, data: bytes) -> None:
        """Keys, their end, or a new size."""
        if not self._here:
            return
        if lane is Lane.MAIN and self._takes_input:
            self._typed(data)
        elif lane is Lane.STDIN_END:
            self._stdin_ended()
        elif lane is Lane.RESIZE:
            self._resize(data)

    def finished(self) -> None:
        """The client will send nothing more; it still watches."""
        self._end_input()

    def reset(self, reason: Reason) -> None:
        """The client went away; the shell stays."""
        self._leave()

    def closed(self) -> None:
        """The channel is over; the shell stays."""
        self._leave()

    # -- between them

    def _typed(self, data: bytes) -> None:
        if not self._tty:
            self._shared.type(data)
            return
        if self._forget_held_key():
            data = _CTRL_P + data
        before, detached, _ = data.partition(_CTRL_P + _CTRL_Q)
        if detached:
            if before:
                self._shared.type(before)
            self._detach()
            return
        if data.endswith(_CTRL_P):
            data = data[:-1]
            self._held_key = self._clock.callLater(DETACH_PATIENCE, self._no_detach)
        if data:
            self._shared.type(data)

    def _no_detach(self) -> None:
        self._held_key = None
        self._shared.type(_CTRL_P)

    def _forget_held_key(self) -> bool:
        held, self._held_key = self._held_key, None
        if held is None:
            return False
        held.cancel()
        return True

    def _detach(self) -> None:
        self._leave()
        conclude(self._channel, Succeeded())

    def _stdin_ended(self) -> None:
        """A terminal's input does not end by itself: a kubectl that knows the detach keys has detached."""
        self._end_input()
        if self._tty and self._here:
            self._detach()

    def _end_input(self) -> None:
        self._takes_input = False
        if self._forget_held_key():
            self._shared.type(_CTRL_P)

    def _resize(self, data: bytes) -> None:
        try:
            size = decode_size(data)
        except RemoteViolation as why:
            self._leave()
            self._channel.reset(Reason(ResetCode.PROTOCOL, str(why)))
            return
        self.size = size if self._counts(size) else None
        self._shared.fit()

    def _counts(self, size: Size | None) -> bool:
        return self._tty and known(size)

    def _became_slow(self) -> None:
        self.slow = True
        self._shared.breathe()

    def _caught_up(self) -> None:
        self.slow = False
        self._flush()
        self._shared.breathe()

    def _flush(self) -> None:
        if self._dropped:
            self._dropped = False
            self._channel.write(DROPPED)
        backlog = bytes(self._backlog)
        self._backlog.clear()
        self._channel.write(backlog)

    def _leave(self) -> None:
        if self._here:
            self._gone()
            self._channel.unregisterProducer()
            self._channel.resumeProducing()
            self._shared.leave(self)

    def _gone(self) -> None:
        self._here = False
        self._takes_input = False
        self._forget_held_key()
