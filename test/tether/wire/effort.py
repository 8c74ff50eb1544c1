"""How long Hypothesis looks: seconds in ``make test``, as long as wished with ``EXAMPLES_TIMES``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("EXAMPLES_TIMES", "1"))


def thorough(examples: int, steps: int = 50) -> settings:
    """So many examples of at most so many steps, ``EXAMPLES_TIMES`` times."""
    return settings(
        max_examples=examples * TIMES,
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
