"""One EdgeDevice and all that belongs to it, file by phase: model, gather, plan, steps.

``plan`` and what it builds with (``nodes``, ``pods``, ``status``) are pure: no clock, no Twisted, no log.
"""
