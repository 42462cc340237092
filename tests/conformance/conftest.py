"""Which daemons do the conformance tests share?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.daemon import Daemon, running
from support.files import SMOLLM2

MIB = 1 << 20


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with SmolLM2 under 60 MiB."""
    directory = tmp_path_factory.mktemp("smollm2")
    arguments = ["--memory", "200MiB", "--model-directory", str(SMOLLM2.parent)]
    with running(directory, *arguments) as daemon:
        daemon.load(SMOLLM2.stem, 60 * MIB)
        yield daemon


@pytest.fixture(scope="session")
def name() -> str:
    """The model's name."""
    return SMOLLM2.stem
