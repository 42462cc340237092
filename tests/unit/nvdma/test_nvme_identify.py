"""Is what a controller says of itself read right, and refused where it would lead us astray?"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvdma.errors import ControllerRefused, NamespaceRefused
from nvdma.nvme.health import parse_error_log, parse_health
from nvdma.nvme.identify import parse_active_namespaces, parse_controller, parse_namespace


def controller(**patches: bytes) -> bytes:
    """Identify Controller of a common drive, with bytes at `_offset` replaced."""
    data = bytearray(4096)
    data[4:72] = b"S4EWNX0R123456".ljust(20) + b"Some SSD 1TB".ljust(40) + b"2B2QEXM7"
    data[77], data[512], data[513] = 7, 0x66, 0x44
    data[258], data[259], data[262], data[525] = 3, 7, 63, 7
    struct.pack_into("<III", data, 80, 0x00010400, 0, 8_000_000)
    struct.pack_into("<I", data, 516, 1)
    return patched(data, patches)


def namespace(blocks: int = 1_953_525_168, lbaf: int = 9 << 16, **patches: bytes) -> bytes:
    """Identify Namespace in format 0 of one."""
    data = bytearray(4096)
    struct.pack_into("<Q", data, 0, blocks)
    struct.pack_into("<I", data, 128, lbaf)
    return patched(data, patches)


def patched(data: bytearray, patches: dict[str, bytes]) -> bytes:
    """`data` with bytes replaced, {"_offset": bytes}."""
    for name, patch in patches.items():
        at = int(name[1:])
        data[at : at + len(patch)] = patch
    return bytes(data)


def test_a_drive_is_recognised_by_what_its_label_says() -> None:
    facts = parse_controller(controller(), "nvme7")
    assert (facts.serial, facts.model, facts.firmware) == ("S4EWNX0R123456", "Some SSD 1TB", "2B2QEXM7")
    assert facts.version == (1, 4, 0)
    assert facts.volatile_write_cache


def test_limits_count_from_one() -> None:
    facts = parse_controller(controller(), "nvme7")
    assert (facts.aborts, facts.async_events, facts.error_entries, facts.namespaces) == (4, 8, 64, 1)
    assert facts.shutdown_seconds == 8.0


@pytest.mark.parametrize(("mdts", "nbytes"), [(0, None), (1, 8192), (5, 128 << 10), (9, 2 << 20), (255, 4 << 30)])
def test_a_command_may_be_as_long_as_the_controller_says(mdts: int, nbytes: int | None) -> None:
    assert parse_controller(controller(_77=bytes([mdts])), "nvme7").max_transfer == nbytes


def test_a_name_cannot_smuggle_control_characters_into_a_terminal() -> None:
    assert parse_controller(controller(_4=b"\x1b[2J\xff\nX"), "nvme7").serial.startswith("?[2J??X")


@pytest.mark.parametrize(("patch", "what"), [
    ({"_512": b"\x77"}, "SQES allows entries of 128 to 128"), ({"_513": b"\x33"}, "CQES allows entries of 8 to 8")])
def test_a_controller_with_other_entry_sizes_is_refused(patch: dict[str, bytes], what: str) -> None:
    with pytest.raises(ControllerRefused, match=what):
        parse_controller(controller(**patch), "nvme7")


@pytest.mark.parametrize(("exponent", "nbytes"), [(9, 512), (12, 4096), (16, 65536)])
def test_a_namespace_has_the_size_of_its_format(exponent: int, nbytes: int) -> None:
    facts = parse_namespace(namespace(1000, exponent << 16), 1)
    assert (facts.block_bytes, facts.blocks, facts.nbytes) == (nbytes, 1000, 1000 * nbytes)


def test_the_format_in_use_is_the_one_that_is_read() -> None:
    facts = parse_namespace(namespace(_25=b"\x01", _26=b"\x01", _132=struct.pack("<I", 12 << 16)), 1)
    assert facts.block_bytes == 4096


def test_with_many_formats_their_number_is_longer() -> None:
    many = namespace(_25=bytes([20]), _26=bytes([1 << 5 | 1]), _196=struct.pack("<I", 12 << 16))
    assert parse_namespace(many, 1).block_bytes == 4096


def test_with_few_formats_the_bits_for_more_are_ignored() -> None:
    assert parse_namespace(namespace(_25=bytes([15]), _26=bytes([1 << 5])), 1).block_bytes == 512


@pytest.mark.parametrize(("data", "what"), [
    (namespace(0), "0 blocks of 512 bytes are no size"),
    (namespace(1 << 54), "are no size of a drive"),
    (namespace((1 << 64) - 1, 16 << 16), "are no size of a drive"),
    (namespace(lbaf=8 << 16), r"blocks of 2\*\*8 bytes"),
    (namespace(lbaf=17 << 16), r"blocks of 2\*\*17 bytes"),
    (namespace(lbaf=255 << 16), r"blocks of 2\*\*255 bytes"),
    (namespace(lbaf=0), r"blocks of 2\*\*0 bytes"),
    (namespace(lbaf=9 << 16 | 8, _26=b"\x10"), "8 bytes of metadata are interleaved"),
    (namespace(lbaf=9 << 16 | 8), "formatted with 8 bytes of metadata"),
    (namespace(_29=b"\x01"), "or protection a block"),
    (namespace(_26=b"\x03"), "its format 3 is none of its 1"),
    (namespace(_25=b"\xff", _26=b"\x6f"), r"blocks of 2\*\*0 bytes"),
])
def test_a_namespace_that_would_be_misread_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(NamespaceRefused, match=what):
        parse_namespace(data, 3)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 26) - 1), st.binary(min_size=5, max_size=5))
def test_nothing_a_device_says_of_a_namespace_surprises(blocks: int, lbaf: int, others: bytes) -> None:
    said = bytearray(namespace(blocks, _25=others))
    said[128:384] = struct.pack("<I", lbaf) * 64
    try:
        facts = parse_namespace(bytes(said), 1)
    except NamespaceRefused:
        return
    assert 512 <= facts.block_bytes <= 65536
    assert 0 < facts.nbytes < 1 << 63


@pytest.mark.parametrize(("data", "identity"), [
    (namespace(), ""), (namespace(_120=b"\x01" * 8), "01" * 8),
    (namespace(_104=b"\x02" * 16, _120=b"\x01" * 8), "02" * 16)])
def test_a_namespace_is_told_from_others_by_what_identifies_it_best(data: bytes, identity: str) -> None:
    assert parse_namespace(data, 1).identity == identity


def test_active_namespaces_end_at_the_first_zero() -> None:
    assert parse_active_namespaces(struct.pack("<4I", 1, 3, 0, 9).ljust(4096, b"\0"), 4) == (1, 3)
    assert parse_active_namespaces(bytes(4096), 4) == ()
    assert len(parse_active_namespaces(struct.pack("<1024I", *range(1, 1025)), 2000)) == 1024


@pytest.mark.parametrize("listed", [(1, 1), (2, 1), (1, 5)])
def test_a_list_of_namespaces_that_makes_no_sense_is_refused(listed: tuple[int, ...]) -> None:
    with pytest.raises(ControllerRefused, match="do not increase up to 4"):
        parse_active_namespaces(struct.pack(f"<{len(listed)}I", *listed).ljust(4096, b"\0"), 4)


def smart() -> bytearray:
    """The log of a drive that is hot and worn."""
    data = bytearray(512)
    struct.pack_into("<BHBBB", data, 0, 0b1010, 273 + 71, 90, 10, 103)
    for at, value in ((32, 2), (48, 3), (112, 4), (128, 5), (144, 6), (160, 7), (176, 8)):
        struct.pack_into("<Q", data, at, value)
    return data


def test_health_is_told_in_units_people_know() -> None:
    health = parse_health(bytes(smart()))
    assert health.warnings == ("temperature outside its thresholds", "media read-only")
    assert (health.temperature, health.spare, health.spare_threshold, health.percentage_used) == (71, 90, 10, 103)
    assert (health.bytes_read, health.bytes_written) == (1_024_000, 1_536_000)
    assert (health.power_cycles, health.power_on_hours, health.unsafe_shutdowns) == (4, 5, 6)
    assert (health.media_errors, health.error_entries) == (7, 8)


def test_an_unknown_temperature_is_not_absolute_zero() -> None:
    assert parse_health(bytes(512)).temperature is None


def test_the_error_log_names_command_and_place_and_leaves_unused_entries_out() -> None:
    entry = struct.pack("<QHHHHQI", 17, 1, 0x2A, 0x4281 << 1 | 1, 0, 1234, 1).ljust(64, b"\0")
    unknown = struct.pack("<QHHHHQI", 16, 0xFFFF, 0xFFFF, 0x0006 << 1, 0, 0, 0).ljust(64, b"\0")
    first, second = parse_error_log(entry + unknown + bytes(64))
    assert (first.count, first.qid, first.cid, first.lba, first.nsid) == (17, 1, 0x2A, 1234, 1)
    assert first.status == "Unrecovered Read Error"
    assert (second.qid, second.cid, second.status) == (None, None, "Internal Error")
