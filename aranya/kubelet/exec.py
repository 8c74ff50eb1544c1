"""``/exec``, ``/attach`` and ``/run``: a process or the shell of the device.

All that can be refused is refused before the 101, as an HTTP error that every
kubectl shows. After it there is only the status at the end of the session.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime

from aranya.interfaces import ClientEvents, ClientStreams, ServedPod, Status
from aranya.kubelet.visit import JSON, Refusal, Visit
from aranya.session.execution import Execution
from aranya.streaming.remotecommand import exec_streams
from tether.verbs.requests import Attach, Exec

_NO_STREAMS = "you must specify at least 1 of stdin, stdout, stderr"
#: What ``/run`` holds of an output, and how long it waits for its end.
RUN_LIMIT = 1024 * 1024
RUN_PATIENCE = 300.0
