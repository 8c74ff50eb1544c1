"""Wished against seen: EdgeDevices become Nodes, Leases, certificates, endpoints and virtual pods.

Imports ``aranya.kube`` and the interfaces; never ``kubelet``, ``device`` or ``streaming``.
"""
