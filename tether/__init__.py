"""What both daemons share: the wire, the verbs, and Twisted around them.

Imports neither daemon. ``wire`` and ``verbs`` are without I/O and without
Twisted; ``link`` puts Twisted around them.
"""
