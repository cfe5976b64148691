"""Profiles of hypothesis, which generates the examples of property tests."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

EXAMPLES = 30
LONG = 100
"""How many times as many examples the profile "long" has: pytest --hypothesis-profile=long."""


def register_profiles() -> None:
    """Loads the profile of the suite, which has the same examples in every run, and registers "long" beside it.

    A test that needs more or fewer examples than others takes a multiple of `settings.default.max_examples`, so that
    "long" has more of them as well. No profile measures time: the machine may be busy.
    """
    # Constants of modules that were parsed once are kept there; by default it is a folder of the tree.
    cache = Path(tempfile.gettempdir()) / f"mae-serve-hypothesis-{os.getuid()}"
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache))
    common = settings(
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
        max_examples=EXAMPLES,
    )
    settings.register_profile("suite", common, derandomize=True)
    settings.register_profile("long", common, max_examples=EXAMPLES * LONG)
    settings.load_profile("suite")
