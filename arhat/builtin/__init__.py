"""Commands that the agent brings for devices without them, so that ``kubectl cp`` needs nothing installed.

Reading order: ``commands`` (in the agent: what runs instead of what) > ``__main__``
(in the child) > ``archiving``, ``unpacking``. The child's part imports the
standard library only.
"""
