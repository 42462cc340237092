"""Can what somebody sends fill the log, break a line of it, or outgrow what carries an error?"""

from __future__ import annotations

import logging
import re

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvstreamd.api.rpc_errors import status_of
from nvstreamd.errors import InvalidRequest, NvstreamError, from_wire, unexpected
from nvstreamd.text import LOG_BYTES, BoundedFormatter, bounded, places

METADATA_BYTES = 8 << 10


@given(text=st.text(), most=st.integers(4, 100))
@settings(derandomize=True)
def test_a_bounded_text_is_one_printable_line(text: str, most: int) -> None:
    found = bounded(text, most)
    assert len(found.encode()) <= most
    assert all(char.isprintable() for char in found)


def test_a_short_plain_text_is_left_alone() -> None:
    assert bounded("Grüße, 世界 (1 of 2)", 100) == "Grüße, 世界 (1 of 2)"
    assert bounded("a\0b\n\u202ec", 100) == "a\ufffdb \ufffdc"


@pytest.mark.parametrize("text", ["\0" * (16 << 20), "é" * 10**6, "🦜" * 10**6, "\u202e" * 10**6])
def test_an_error_fits_into_what_clients_take_whatever_it_repeats(text: str) -> None:
    error = InvalidRequest(text, text, field=text)
    status = status_of(error)
    in_ascii = sum(len(byte.encode()) * 3 for byte in status.details)
    assert in_ascii + sum(len(value) * 4 // 3 for _, value in status.trailing_metadata) < METADATA_BYTES


def test_a_status_that_is_none_becomes_internal() -> None:
    error = from_wire("ROOT_SHELL", "x", "", "")
    assert status_of(error).code == grpc.StatusCode.INTERNAL


def test_a_foreign_exception_tells_nobody_what_was_in_it() -> None:
    error = unexpected(ValueError("a user's secret"), "preparing the request")
    assert "secret" not in str(error) and "ValueError" in str(error)
    own = NvstreamError("ours")
    assert unexpected(own, "anything") is own


def test_a_record_of_the_log_is_one_bounded_line() -> None:
    try:
        raise ValueError("x" * 10**6 + "\n\n")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
        assert "secret" not in places(error, with_text=False) and "test_text.py" in places(error)
    record = logging.LogRecord("name", logging.ERROR, __file__, 1, "told %s", ("\n" * 10**6,), info)
    line = BoundedFormatter().format(record)
    assert "\n" not in line and len(line.encode()) <= LOG_BYTES
    ours = BoundedFormatter("a model\n" + "x" * 10**6).format(record)
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}\+00:00 a model x", ours)
    assert "\n" not in ours and len(ours.encode()) <= LOG_BYTES and "ERROR name: told" in ours
