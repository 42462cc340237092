"""Which tests need a process of their own? Those that fork it: grpcio, which others load, does not survive that twice."""

from __future__ import annotations

import os

collect_ignore_glob = [] if "NVSTREAM_FORKING" in os.environ else ["forking/*"]
