"""The languages kubectl speaks at the kubelet's door, and nothing behind that door.

``upgrade`` takes an HTTP connection over, ``negotiate`` chooses the language,
``spdy`` and ``websocket`` hold the laws (no Twisted) and their bridges,
``remotecommand`` (exec, attach) and ``forwarding`` (port-forward) make of them the
``ClientStreams`` and ``ForwardStream`` that the rest of the controller knows.
"""
