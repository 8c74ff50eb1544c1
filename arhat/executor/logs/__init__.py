"""Reading the host's logs: files, the journal, the kernel's ring, and what of them is asked.

Reading order: ``starting`` > ``reading`` > ``file``, ``journal``, ``kernel`` > ``selection``, ``stamps``.
"""
