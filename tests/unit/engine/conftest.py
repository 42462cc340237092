"""Which tests need a process of their own? Those that fork it: what grpcio does at a fork does not survive a second."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "NVSTREAM_FORKING" in os.environ else ["forking/*"]
