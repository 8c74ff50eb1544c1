"""Exec: a command with or without a terminal, or the exit code of one that cannot start."""

from __future__ import annotations

from twisted.logger import Logger

from arhat.executor.ending import cannot_start
from arhat.executor.environment import Account, CannotRun, launch
from arhat.executor.hangup import Hangups
from arhat.executor.process import start_with_pipes
from arhat.executor.pty import start_with_terminal
from arhat.interfaces import Builtins, ProcessHost
from tether.link.interfaces import Channel, Lane, Receiver
from tether.verbs.requests import Exec


class Execution:
    """Starts commands; the ``Starter`` of ``Exec``."""

    _log = Logger()

    def __init__(
        self, host: ProcessHost, account: Account, hangups: Hangups, builtins: Builtins | None = None
    ) -> None:
        self._host = host
        self._account = account
        self._hangups = hangups
        self._builtins = builtins

    def __call__(self, request: Exec, channel: Channel) -> Receiver:
        """Run ``request`` on ``channel``."""
        begin = start_with_terminal if request.tty else start_with_pipes
        try:
            plan = launch(self._account, request, self._builtins)
            return begin(self._host, self._hangups, plan, request, channel)
        except CannotRun as why:
            code, text = why.code, why.text
        except OSError as why:
            # No more processes, files or terminals.
            code, text = 126, f"arhat: cannot start a process: {(why.strerror or str(why)).lower()}"
            self._log.warn("stream {stream}: {text}", stream=channel.stream, text=text)
        lane = Lane.MAIN if request.tty else Lane.ERROR if request.stderr else None
        return cannot_start(channel, code, text, lane)
