"""Profiles of hypothesis, which generates the examples of property tests."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

EXAMPLES = 30
LONG = 100
"""How many times as many examples the profile "long" has: pytest --hypothesis-profile=long."""


def register_profiles() -> None:
    """Loads the profile of the suite, which has the same examples in every run, and registers "long" beside it.

    A test that needs more or fewer examples than others takes a multiple of `settings.default.max_examples`, so that
    "long" has more of them as well. No profile measures time: the machine may be busy.
    """
    # What hypothesis keeps between runs lies there; by default that is a folder of the tree.
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
    leave_out_constants()


def leave_out_constants() -> None:
    """Keeps the constants of loaded modules out of examples that are to be the same in every run.

    Hypothesis draws some values from the constants of all modules of the project that are loaded at the time. Which
    ones are loaded depends on the tests that the process has run before. There is no setting for this. The profile
    "long" still draws from them.
    """
    find_constants = providers._get_local_constants

    def constants() -> providers.Constants:
        return providers._local_constants if settings.default.derandomize else find_constants()

    providers._get_local_constants = constants
