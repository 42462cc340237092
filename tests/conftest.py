"""Which of the slow tests does a run of CI take? Those that hold what is never cut, and a slice chosen by the commit.

Whoever runs `make test-all` runs all of them.
"""

from __future__ import annotations

import zlib

import pytest

# These hold the product's promise: every run takes them.
NEVER_CUT = ("test_same_answer.py", "test_users.py")
# Of the others, each commit takes about one in so many.
SLICES = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --slice-of COMMIT."""
    parser.addoption("--slice-of", metavar="COMMIT", help="run a slice of the slow tests, chosen by the commit")


def taken(node: str, commit: str) -> bool:
    """True when a slow test is in the slice of a commit."""
    return any(name in node for name in NEVER_CUT) or zlib.crc32(f"{commit} {node}".encode()) % SLICES == 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is not in the slice, and says so test by test."""
    commit = config.getoption("--slice-of")
    if not commit:
        return
    left = [item for item in items if item.get_closest_marker("slow") and not taken(item.nodeid, commit)]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)
    config.stash[LEFT] = [item.nodeid for item in left]


LEFT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Lists what the slice left out."""
    for node in config.stash.get(LEFT, []):
        terminalreporter.write_line(f"NOT IN THIS COMMIT'S SLICE: {node}")
