"""The controller: EdgeDevices become Nodes, and kubectl reaches the devices behind them.

Reading order of a kubectl call: ``kubelet`` > ``streaming`` > ``session`` >
``device`` > ``tether``. Of an EdgeDevice: ``kube`` > ``controller`` > ``certs``.
``service`` is the wiring diagram and the only module that knows them all.
``test/test_layers.py`` holds the law of who may import whom.
"""
