"""What must a run of these tests know before its options are read? The profiles of hypothesis (support.examples)."""

from __future__ import annotations

import support.examples  # noqa: F401
