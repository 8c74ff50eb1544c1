"""How a daemon starts, fails and stops under ``twistd``, without a process."""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Application, IService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LoggingFile
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tether.daemon import STOP_DEADLINE, Daemon, Fatal, json_observer, refuse

ROOT = Path(__file__).resolve().parents[2]


class DaemonReactor(Clock):
    """A reactor that is told to run, and told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self._waiting: list[Callable[[], None]] = []

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        """Call once it runs."""
        self._waiting.append(call)

    def callFromThread(self, call: Callable[..., None], *arguments: object) -> None:
        """Call at once: a signal came in the reactor's thread."""
        call(*arguments)

    def run(self) -> None:
        """It runs from here on."""
        for call in self._waiting:
            call()

    def stop(self) -> None:
        """Told to stop; may be told once."""
        self.stops += 1
        if self.stops > 1:
            raise ReactorNotRunning()


class Child(Service):
    """What a daemon runs; its end may take a while."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.ending: Deferred[None] | None = None

    def startService(self) -> None:
        """Start, or fail to."""
        if self.error is not None:
            raise self.error
        super().startService()

    def stopService(self) -> Deferred[None] | None:
        """Stop."""
        super().stopService()
        return self.ending


class LingeringChild(Child):
    """A child that others are not done with until somebody insists."""

    linger = 30.0

    def __init__(self) -> None:
        super().__init__()
        self.ending = Deferred()
        self.hurried = 0

    def hurry(self) -> None:
        """Somebody insists."""
        self.hurried += 1


class DaemonCase(SynchronousTestCase):
    """A daemon whose build ends when the test says so."""

    def setUp(self) -> None:
        self.reactor = DaemonReactor()
        self.built: Deferred[IService] = Deferred()
        self.child = Child()
        self.stderr = io.StringIO()
        self.patch(sys, "stderr", self.stderr)
        self.exits: list[int] = []
        self.patch(atexit, "register", lambda call, code: self.exits.append(code))
        for number in (signal.SIGTERM, signal.SIGINT):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.left: list[int] = []
        self.daemon = Daemon("prog", self.reactor, self.build, leave=self.left.append)  # type: ignore[arg-type]  # what is needed of it

    async def build(self, daemon: Daemon) -> IService:
        """What the daemon is built by."""
        return await self.built

    def start(self) -> None:
        """As ``twistd`` does."""
        self.daemon.startService()
        self.reactor.run()


class StartTests(DaemonCase):
    """From start to a service that runs, or one line."""

    def test_runs(self) -> None:
        """What was built is started."""
        self.start()
        self.assertFalse(self.child.running)
        self.built.callback(self.child)
        self.assertTrue(self.child.running)
        self.assertEqual((0, ""), (self.reactor.stops, self.stderr.getvalue()))

    def test_fatal(self) -> None:
        """A ``Fatal`` is its one line, and code 1."""
        self.start()
        self.built.errback(Fatal("no credentials; use --kubeconfig"))
        self.assertEqual("prog: no credentials; use --kubeconfig\n", self.stderr.getvalue())
        self.assertEqual((1, [1]), (self.reactor.stops, self.exits))

    def test_past_the_log(self) -> None:
        """The line goes to our own stderr, not into the log that twistd puts in its place."""
        path = self.mktemp()
        with open(path, "w") as own:
            self.patch(sys, "__stderr__", own)
            self.patch(sys, "stderr", LoggingFile(Logger()))
            self.daemon.fail("cannot listen")
        with open(path) as said:
            self.assertEqual("prog: cannot listen\n", said.read())

    def test_daemonised(self) -> None:
        """Where our own stderr is nothing, the log has the line."""
        said: list[str] = []
        with open(os.devnull, "w") as nothing:
            self.patch(sys, "__stderr__", nothing)
            logger = Logger(observer=lambda event: said.append(str(event["log_io"])))
            self.patch(sys, "stderr", LoggingFile(logger))
            self.daemon.fail("cannot listen")
        self.assertEqual(["prog: cannot listen"], said)

    def test_bug(self) -> None:
        """Anything else is logged with its failure, and code 1 as well."""
        self.start()
        self.built.errback(ZeroDivisionError())
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.assertEqual((1, [1]), (self.reactor.stops, self.exits))

    def test_cannot_be_started(self) -> None:
        """A service that fails to start ends the daemon like one that cannot be built."""
        for error in (Fatal("taken"), ZeroDivisionError("taken")):
            self.setUp()
            self.child.error = error
            self.start()
            self.built.callback(self.child)
            self.assertIn("prog: taken\n", self.stderr.getvalue())
            self.assertEqual((1, [1]), (self.reactor.stops, self.exits))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_refuse(self) -> None:
        """A program that may not begin ends with one line."""
        with self.assertRaises(SystemExit) as raised:
            refuse("prog", "wrong")
        self.assertEqual("prog: wrong", raised.exception.code)


class StopTests(DaemonCase):
    """From a signal to the end."""

    def signalled(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Do what the signal's handler does."""
        handler: Any = signal.getsignal(number)
        handler(number, None)

    def stopped(self) -> Deferred[None]:
        """What ``twistd`` does when the reactor stops."""
        return self.daemon.stopService()

    def test_signals(self) -> None:
        """Either signal stops the reactor, with code 0; a second one changes nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self.setUp()
            self.start()
            self.built.callback(self.child)
            self.signalled(number)
            self.signalled(number)
            self.successResultOf(self.stopped())
            self.assertEqual((False, [], ""), (self.child.running, self.exits, self.stderr.getvalue()))

    def test_signal_while_building(self) -> None:
        """What is being built is given up, silently and with code 0."""
        self.start()
        self.signalled()
        self.successResultOf(self.stopped())
        self.assertTrue(self.built.called, "it was not given up")
        self.assertEqual((1, [], ""), (self.reactor.stops, self.exits, self.stderr.getvalue()))

    def test_waits_for_children(self) -> None:
        """The end waits for the children, but not for ever."""
        self.start()
        self.built.callback(self.child)
        self.child.ending = Deferred()
        stopped = self.stopped()
        self.reactor.advance(STOP_DEADLINE - 0.1)
        self.assertNoResult(stopped)
        self.assertEqual([], self.left)
        self.reactor.advance(0.2)
        self.successResultOf(stopped)
        self.assertEqual([0], self.left)

    def test_waits_for_no_thread(self) -> None:
        """A thread that is not done, as one that waits for a name server, does not keep the process."""
        program = (
            "import threading, time; from tether import daemon; daemon.THREADS_PATIENCE = 0.1;"
            "threading.Thread(target=time.sleep, args=(60,)).start(); daemon.leave_soon(7)"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=30, check=False)
        self.assertEqual(7, done.returncode)

    def test_lingers(self) -> None:
        """A child that lingers has that much longer, and a second signal makes it hurry."""
        child = self.child = LingeringChild()
        self.start()
        self.built.callback(child)
        self.signalled()
        stopped = self.stopped()
        self.reactor.advance(STOP_DEADLINE + 1)
        self.assertNoResult(stopped)
        self.assertEqual(0, child.hurried)
        self.signalled(signal.SIGINT)
        self.assertEqual((1, []), (child.hurried, self.exits))
        child.ending.callback(None)
        self.successResultOf(stopped)

    def test_lingers_too_long(self) -> None:
        """A child that lingers longer than it said does not keep the process."""
        self.child = LingeringChild()
        self.start()
        self.built.callback(self.child)
        stopped = self.stopped()
        self.reactor.advance(STOP_DEADLINE + LingeringChild.linger - 0.1)
        self.assertNoResult(stopped)
        self.reactor.advance(0.2)
        self.successResultOf(stopped)

    def test_hurries_too_slowly(self) -> None:
        """After the second signal a child that lingered has as long as any other."""
        self.child = LingeringChild()
        self.start()
        self.built.callback(self.child)
        self.signalled()
        stopped = self.stopped()
        self.reactor.advance(1)
        self.signalled()
        self.reactor.advance(STOP_DEADLINE - 0.1)
        self.assertNoResult(stopped)
        self.reactor.advance(0.2)
        self.successResultOf(stopped)

    def test_two_signals_at_once(self) -> None:
        """A second signal that comes before the children are told to stop is not lost."""
        child = self.child = LingeringChild()
        self.start()
        self.built.callback(child)
        self.signalled()
        self.signalled()
        self.stopped()
        self.assertEqual(1, child.hurried)

    def test_failing_end(self) -> None:
        """A child that fails to stop does not keep the process."""
        self.start()
        self.built.callback(self.child)
        self.child.ending = Deferred()
        stopped = self.stopped()
        self.child.ending.errback(ZeroDivisionError())
        self.successResultOf(stopped)
        self.flushLoggedErrors(ZeroDivisionError)

    def test_fails_later(self) -> None:
        """A part that breaks later ends the daemon with its line; the code stays 1 through a signal."""
        self.start()
        self.built.callback(self.child)
        self.daemon.fail("cannot listen")
        self.signalled()
        self.assertEqual("prog: cannot listen\n", self.stderr.getvalue())
        self.assertEqual({1}, set(self.exits))


class JsonLogTests(SynchronousTestCase):
    """``--log-format json``."""

    def test_line(self) -> None:
        """An event is one flat object a line: time, level, logger, message and the known fields."""
        stream = io.StringIO()
        log = Logger("here", observer=json_observer(stream))
        log.warn("device {device}\nleft", device="edge/dev", other=object())
        line = json.loads(stream.getvalue())
        self.assertEqual(
            ("warn", "here", "device edge/dev\nleft", "edge/dev"),
            (line["level"], line["logger"], line["message"], line["device"]),
        )
        self.assertNotIn("other", line)
        self.assertTrue(line["time"].endswith("+00:00"))

    def test_failure(self) -> None:
        """A failure comes with its traceback, in the same line."""
        stream = io.StringIO()
        Logger("here", observer=json_observer(stream)).failure("oh", Failure(ZeroDivisionError("nought")))
        [text] = stream.getvalue().splitlines()
        self.assertIn("nought", json.loads(text)["failure"])

    def test_takes_the_place_of_twistds(self) -> None:
        """The application's observer is the daemon's when it joins."""
        application = Application("prog")
        stream = io.StringIO()
        daemon = Daemon("prog", DaemonReactor(), lambda daemon: None, stream)  # type: ignore[arg-type,return-value]  # never run
        daemon.setServiceParent(application)
        Logger("here", observer=application.getComponent(ILogObserver)).info("hello")
        self.assertEqual("hello", json.loads(stream.getvalue())["message"])
