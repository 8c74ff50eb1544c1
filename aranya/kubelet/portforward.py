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

    def pod_now() -> ServedPod:
        # A change of containers re-creates the pod; that must not end what runs.
        return served.pod if served.pod is not None and served.pod.uid else admitted

    acceptor = Forwarding(visit.devices, pod_now)
    ports = [value.decode("latin-1") for value in visit.values(b"port")]
    served.streams.add(forward_streams(visit.request, ports, visit.clock, acceptor))
