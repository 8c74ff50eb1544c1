"""The agent: dials out from the device and does on its host what kubectl asked.

Reading order: ``dial`` > ``agent`` > ``executor`` > ``builtin``.
"""
