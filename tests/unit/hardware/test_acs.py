"""Is what a port says of Access Control Services found in its configuration, and is hostile configuration only read?"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvstreamd.hardware.acs import Acs, parse
from support.pci_configuration import configuration


@pytest.mark.parametrize("before", [(), ((0x0001, 1),), ((0x0001, 2), (0x0019, 1))])
def test_the_capability_is_found_behind_others(before: tuple[tuple[int, int], ...]) -> None:
    space = configuration(*[(kind, version, b"") for kind, version in before], (0x000D, 1, b"\x5f\x00\x1d\x00"))
    assert parse(space) == Acs(0x5F, 0x1D)


@pytest.mark.parametrize(("control", "redirects"), [(0x1D, True), (0x04, True), (0x1B, False), (0, False)])
def test_requests_go_up_when_the_port_is_told_so(control: int, redirects: bool) -> None:
    assert Acs(0xFFFF, control).redirects is redirects


def test_a_port_without_it_is_not_one_that_could_not_be_read() -> None:
    assert parse(configuration((0x0001, 2, b""))) == Acs(0, 0)
    assert parse(configuration()) == Acs(0, 0)
    assert parse(configuration()[:64]) is None and parse(None) is None


def test_a_list_without_an_end_is_left() -> None:
    space = bytearray(configuration((0x0001, 1, b""), (0x0002, 1, b"")))
    second = int.from_bytes(space[0x100:0x104], "little") >> 20
    space[second + 2 : second + 4] = (0x1001).to_bytes(2, "little")  # back to 0x100
    assert parse(bytes(space)) == Acs(0, 0)


@given(st.integers(65, 4096), st.integers())
def test_any_bytes_are_read_to_an_end(nbytes: int, seed: int) -> None:
    assert parse(Random(seed).randbytes(nbytes)) is not None
