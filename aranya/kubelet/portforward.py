"""``/portForward``: one upgrade, then any number of connections to the device."""

from __future__ import annotations

from aranya.interfaces import ServedPod
from aranya.kubelet.visit import Visit
from aranya.session.forward import Forwarding
from aranya.streaming.forwarding import forward_streams


def port_forward(visit: Visit) -> None:
    """Let the client forward ports of the virtual pod."""
    admitted = visit.pod()
    visit.device("port-forward")
    served = visit.served

    def pod_now() -> ServedPod | None:
        # The pod may be re-created and its targets changed while a port-forward runs;
        # another pod is another authorisation.
        pod = served.pod
        return pod if pod is not None and pod.uid == admitted.uid else None

    forward_streams(visit.request, visit.clock, Forwarding(visit.devices, pod_now))
