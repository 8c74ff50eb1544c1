"""Generated from ``proto/``; imported by ``wire.frames``, ``verbs.codec`` and ``join`` only."""
