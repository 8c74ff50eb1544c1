"""How both daemons live under ``twistd``: start, fail, stop, and say so.

``twistd`` runs services but leaves three things open that an operator sees:
a service that cannot start is a traceback and a process that stays up, SIGTERM
ends with code 143, and nothing can choose the exit code. ``Daemon`` is the top
service of either daemon and closes them: a ``Fatal`` is one line and exit
code 1, SIGTERM and SIGINT stop the children within a deadline and exit 0.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, NoReturn, TextIO, cast

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorCore, IReactorFromThreads, IReactorTime
from twisted.logger import FileLogObserver, ILogObserver, LogEvent, Logger, LoggingFile, formatEvent
from twisted.python.components import Componentized
from twisted.python.failure import Failure

#: Seconds the children have to stop after SIGTERM; then the process ends anyway.
STOP_DEADLINE = 10.0

#: The fields of log events that mean the same everywhere.
_FIELDS = ("device", "stream", "verb", "pod", "peer", "reason")


class Fatal(Exception):
    """The daemon cannot go on; the text is one line that says why and what to do."""


class DaemonReactor(IReactorCore, IReactorTime, IReactorFromThreads):
    """What a daemon needs of its reactor."""


def refuse(program: str, line: str) -> NoReturn:
    """End the program before it began: one line on stderr, exit code 1."""
    raise SystemExit(f"{program}: {line}")


class Daemon(MultiService):
    """The top service: builds the real one asynchronously and watches over it.

    ``build`` may read files and ask servers; what it returns is started as a
    child. It may raise ``Fatal``. ``fail`` is for parts that break later.
    """

    _log = Logger()

    def __init__(
        self,
        program: str,
        reactor: DaemonReactor,
        build: Callable[[Daemon], Coroutine[Deferred[Any], Any, IService]],
        json_log: TextIO | None = None,
    ) -> None:
        super().__init__()
        self._program = program
        self._reactor = reactor
        self._build = build
        self._json_log = json_log
        self._building: Deferred[None] | None = None
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
        """Stop what runs, or what is being built, within ``STOP_DEADLINE``."""
        if self._building is not None:
            self._building.cancel()
        # Not ``MultiService``'s own, which leaves what a child fails with unheard.
        Service.stopService(self)
        stopping: list[Deferred[object]] = []
        for child in reversed(list(self)):
            stopped: Deferred[object] = maybeDeferred(child.stopService)
            stopped.addTimeout(STOP_DEADLINE, self._reactor)
            stopping.append(stopped.addErrback(self._stop_failed))
        return DeferredList(stopping).addCallback(lambda _: None)

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
