"""How both daemons live under ``twistd``: start, fail, stop, and say so.

``twistd`` runs services but leaves three things open that an operator sees:
a service that cannot start is a traceback and a process that stays up, SIGTERM
ends with code 143, and nothing can choose the exit code. ``Daemon`` is the top
service of either daemon and closes them: a ``Fatal`` is one line and exit
code 1, SIGTERM and SIGINT stop the children within a deadline and exit 0.
A child that others still use may linger; a second signal ends that.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol, TextIO, cast, runtime_checkable

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads, IReactorTime
from twisted.logger import FileLogObserver, ILogObserver, LogEvent, Logger, LoggingFile, formatEvent
from twisted.python.components import Componentized
from twisted.python.failure import Failure

#: Seconds the children have to stop after SIGTERM; then the process ends anyway.
STOP_DEADLINE = 10.0
#: Seconds after that for threads that are not done yet.
THREADS_PATIENCE = 2.0

#: The fields of log events that mean the same everywhere.
_FIELDS = ("device", "stream", "verb", "pod", "peer", "reason")


class Fatal(Exception):
    """The daemon cannot go on; the text is one line that says why and what to do."""


@runtime_checkable
class Lingering(Protocol):
    """A service whose ``stopService`` may take longer, because others are not done with it."""

    @property
    def linger(self) -> float:
        """For how many seconds more than ``STOP_DEADLINE`` it may take."""

    def hurry(self) -> None:
        """Somebody insists: linger no longer, also if ``stopService`` is still to come."""


class DaemonReactor(IReactorCore, IReactorTime, IReactorFromThreads):
    """What a daemon needs of its reactor."""


def refuse(program: str, line: str) -> NoReturn:
    """End the program before it began: one line on stderr, exit code 1."""
    raise SystemExit(f"{program}: {line}")


class Daemon(MultiService):
    """The top service: builds the real one asynchronously and watches over it.

    ``build`` may read files and ask servers; what it returns is started as a
    child. It may raise ``Fatal``. ``fail`` is for parts that break later.
    ``leave`` is called with the exit code when all has stopped, to see that the process ends.
    """

    _log = Logger()

    def __init__(
        self,
        program: str,
        reactor: DaemonReactor,
        build: Callable[[Daemon], Coroutine[Deferred[Any], Any, IService]],
        json_log: TextIO | None = None,
        leave: Callable[[int], None] = lambda code: None,
    ) -> None:
        super().__init__()
        self._program = program
        self._reactor = reactor
        self._build = build
        self._json_log = json_log
        self._leave = leave
        self._building: Deferred[None] | None = None
        self._stopping: list[Deferred[object]] = []
        self._exit_code = 0

    def setServiceParent(self, parent: Any) -> None:
        """Join the application; a JSON log takes the place of twistd's own."""
        super().setServiceParent(parent)
        if self._json_log is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, json_observer(self._json_log))

    def startService(self) -> None:
        """Begin to build the daemon as soon as the reactor runs."""
        super().startService()
        self._reactor.callWhenRunning(self._running)

    def stopService(self) -> Deferred[None]:
        """Stop what runs, or what is being built, within ``STOP_DEADLINE`` and what a child lingers."""
        if self._building is not None:
            self._building.cancel()
        # Not ``MultiService``'s own, which leaves what a child fails with unheard.
        Service.stopService(self)
        for child in reversed(list(self)):
            linger = child.linger if isinstance(child, Lingering) else 0.0
            stopped: Deferred[object] = maybeDeferred(child.stopService)
            stopped.addTimeout(STOP_DEADLINE + linger, self._reactor)
            self._stopping.append(stopped.addErrback(self._stop_failed))
        return DeferredList(self._stopping).addCallback(lambda _: self._leave(self._exit_code))

    def fail(self, line: str) -> None:
        """End the daemon with one line and exit code 1."""
        ear = _ear()
        ear.write(f"{self._program}: {line}\n")
        ear.flush()
        self._exit(1)

    def _running(self) -> None:
        # After the reactor's own handlers are in place: theirs make twistd exit 143.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        building: Deferred[IService] = Deferred.fromCoroutine(self._build(self))
        # One after the other: a service that cannot start has failed like one that cannot be built.
        self._building = building.addCallback(self._built).addErrback(self._build_failed)

    def _built(self, service: IService) -> None:
        self._building = None
        service.setServiceParent(self)

    def _build_failed(self, failure: Failure) -> None:
        self._building = None
        if isinstance(failure.value, CancelledError):
            return
        if not isinstance(failure.value, Fatal):
            self._log.failure("{program} could not start", failure=failure, program=self._program)
        self.fail(str(failure.value) or repr(failure.value))

    def _stop_failed(self, failure: Failure) -> None:
        self._log.warn("stopping did not end well: {why}", why=str(failure.value) or repr(failure.value))

    def _signalled(self, number: int, _frame: object) -> None:
        self._reactor.callFromThread(self._exit, 0)

    def _exit(self, code: int) -> None:
        self._exit_code = self._exit_code or code
        if self._exit_code:
            # twistd offers no way to choose the exit code.
            atexit.register(_exit_now, self._exit_code)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            self._log.debug("asked to stop while stopping")
            self._hurry()

    def _hurry(self) -> None:
        for child in self:
            if isinstance(child, Lingering):
                child.hurry()
        for stopped in self._stopping:
            # Whatever it lingered for, from here on it has as long as any.
            self._reactor.callLater(STOP_DEADLINE, stopped.cancel)


def leave_soon(code: int) -> None:
    """End the process in a moment, whatever its threads wait for.

    Twisted looks names up in threads, and waits for them at the end: with a name server that does
    not answer that may take a minute.
    """
    last = threading.Timer(THREADS_PATIENCE, _exit_now, (code,))
    last.daemon = True
    last.start()


def _ear() -> TextIO:
    """Where the operator hears: our own stderr, in whose place ``twistd`` puts the log.

    A daemonised process has no stderr, and only the log is left.
    """
    own = sys.__stderr__
    if own is None or not isinstance(sys.stderr, LoggingFile):
        return sys.stderr
    try:
        silent = os.path.samestat(os.fstat(own.fileno()), os.stat(os.devnull))
    except (OSError, ValueError):
        silent = True
    return cast(TextIO, sys.stderr) if silent else own


def _exit_now(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def json_observer(stream: TextIO) -> FileLogObserver:
    """A log observer that writes one flat JSON object a line."""
    return FileLogObserver(stream, _as_json)


def _as_json(event: LogEvent) -> str:
    level = event.get("log_level")
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(event.get("log_time", 0), UTC).isoformat(),
        "level": level.name if level is not None else "info",
        "logger": event.get("log_namespace", ""),
        "message": formatEvent(event),
    }
    line |= {field: str(event[field]) for field in _FIELDS if field in event}
    failure = event.get("log_failure")
    if failure is not None:
        line["failure"] = failure.getTraceback()
    return json.dumps(line) + "\n"
