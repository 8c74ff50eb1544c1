"""``/exec``, ``/attach`` and ``/run``: a process or the shell of the device.

All that can be refused is refused before the 101, as an HTTP error that every
kubectl shows. After it there is only the status at the end of the session.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime

from aranya.interfaces import ClientEvents, ClientStreams, Device, ServedPod, Status
from aranya.kubelet.visit import JSON, Refusal, Visit
from aranya.session.execution import Execution
from aranya.streaming.remotecommand import StreamOptions, exec_streams
from tether.verbs.requests import Attach, Exec

#: What ``/run`` holds of an output, and how long it waits for its end.
RUN_LIMIT = 1024 * 1024
RUN_PATIENCE = 300.0


def execute(visit: Visit) -> None:
    """Run a command on the device's host."""
    options = _options(visit)
    argv = tuple(visit.values(b"command"))
    pod = visit.pod()
    name = visit.named["container"]
    _host_only(visit, pod, "exec", f'container not found ("{name}")')
    if not argv or not argv[0]:
        raise Refusal(400, "you must specify at least one command for the container")
    device = visit.device("exec")
    _start(visit, device, options, Exec(argv, options.stdin, options.stdout, options.stderr, options.tty))


def attach(visit: Visit) -> None:
    """Join the device's long-lived shell."""
    options = _options(visit)
    pod = visit.pod()
    name = visit.named["container"]
    _host_only(visit, pod, "attach", f"container {name} not found in pod {pod.key.name}_{pod.key.namespace}")
    device = visit.device("attach")
    _start(visit, device, options, Attach(options.stdin, options.stdout, options.stderr, options.tty))


def run(visit: Visit) -> None:
    """Run ``cmd`` without streams and answer what it wrote; old, and for people only."""
    pod = visit.pod()
    _host_only(visit, pod, "run", f'container not found ("{visit.named["container"]}")')
    argv = tuple(part for part in (visit.value(b"cmd") or b"").split(b" ") if part)
    if not argv:
        raise Refusal(400, "the query must have cmd=COMMAND")
    device = visit.device("exec")
    output = CollectedOutput(visit)
    execution = Execution(device, Exec(argv), output, visit.served.ended)
    output.watch(execution, visit.clock)


def _options(visit: Visit) -> StreamOptions:
    tty = visit.value(b"tty") == b"1"
    options = StreamOptions(
        stdin=visit.value(b"input") == b"1",
        stdout=visit.value(b"output") == b"1",
        # A terminal has one output. Old clients ask for both; they mean the terminal.
        stderr=visit.value(b"error") == b"1" and not tty,
        tty=tty,
    )
    if not (options.stdin or options.stdout or options.stderr):
        raise Refusal(400, "you must specify at least 1 of stdin, stdout, stderr")
    return options


def _host_only(visit: Visit, pod: ServedPod, verb: str, not_found: str) -> None:
    container = visit.container(pod)
    if container is None:
        raise Refusal(500, not_found)
    host = pod.containers[0].name
    if container.name != host:
        raise Refusal(
            400, f"container {container.name} is a log; to {verb}, use the container {host} (-c {host})"
        )


def _start(visit: Visit, device: Device, options: StreamOptions, request: Exec | Attach) -> None:
    def started(streams: ClientStreams) -> ClientEvents:
        # Another agent may have taken over while the client opened its streams.
        return Execution(visit.devices.get(device.key) or device, request, streams)

    visit.served.streams.add(exec_streams(visit.request, options, visit.clock, started))


class CollectedOutput:
    """The client of ``/run``: holds what the command writes, answers when it ends (``ClientStreams``)."""

    tty = False
    has_stdin = False
    has_stdout = True
    has_stderr = True

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._held = bytearray()
        self._execution: Execution | None = None
        self._deadline: IDelayedCall | None = None
        self._over = False

    def watch(self, execution: Execution, clock: IReactorTime) -> None:
        """End ``execution`` when it takes too long or writes too much, or the client leaves."""
        if self._over:
            return
        self._execution = execution
        self._visit.served.began(execution)
        text = f"the command ran for more than {RUN_PATIENCE:.0f} s; use kubectl exec"
        self._deadline = clock.callLater(RUN_PATIENCE, execution.abort, text)
        self._visit.on_leaving(self._client_left)
        self._check()

    def _client_left(self) -> None:
        self._calm()
        if self._execution is not None:
            self._execution.client_gone("the client went away")

    def _calm(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def write_stdout(self, data: bytes) -> None:
        """Hold it."""
        if len(self._held) <= RUN_LIMIT:
            self._held += data
            self._check()

    write_stderr = write_stdout

    def _check(self) -> None:
        if len(self._held) > RUN_LIMIT and self._execution is not None:
            self._execution.abort(f"the command wrote more than {RUN_LIMIT} bytes; use kubectl exec")

    def register_producer(self, producer: IPushProducer) -> None:
        """Nothing to pause: what is held has a bound."""

    def unregister_producer(self) -> None:
        """Nothing to pause."""

    def pause_stdin(self) -> None:
        """There is none."""

    def resume_stdin(self) -> None:
        """There is none."""

    def end(self, status: Status) -> None:
        """Answer what was held; a command that failed is a 500 with its output."""
        self._over = True
        self._calm()
        if status.success:
            self._visit.answer(bytes(self._held), JSON)
        else:
            why = status.message or f"command terminated with exit code {status.exit_code}"
            self._visit.answer(why.encode() + b"\n" + bytes(self._held), code=500)
