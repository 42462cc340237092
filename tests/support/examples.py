"""How many examples does a property get? As many as its test says; in `make unit`, which people wait for, a part."""

from __future__ import annotations

from hypothesis import settings

UNIT = "unit"
PART = 5
# Of tests that ask for no number.
settings.register_profile(UNIT, max_examples=settings.get_profile("default").max_examples // PART)


def examples(all_of_them: int) -> int:
    """The number for `max_examples`, as the profile says with which pytest was started (--hypothesis-profile)."""
    return all_of_them // PART if settings.get_current_profile_name() == UNIT else all_of_them
