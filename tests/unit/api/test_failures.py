"""What does a caller read of an exception, and is what went wrong here in the log?"""

from __future__ import annotations

import logging
from unittest.mock import Mock

import pytest

from nvstream.v1.inference_pb2_grpc import InferenceServicer
from nvstreamd.api import edge


def test_a_method_that_nobody_wrote_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    try:
        InferenceServicer().Generate(None, Mock())
    except NotImplementedError as error:
        found = edge._failure(error, "Inference/Generate")
    assert found.status == "UNIMPLEMENTED" and "Inference/Generate" in str(found) and not caplog.records


def test_a_method_that_breaks_by_the_same_exception_is_a_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """It was told as a method that this daemon does not have, and was in no log."""
    with caplog.at_level(logging.ERROR):
        try:
            raise NotImplementedError("a library's, with a user's secret")
        except NotImplementedError as error:
            found = edge._failure(error, "Inference/Generate")
    assert found.status == "INTERNAL" and "secret" not in str(found)
    assert "NotImplementedError" in caplog.text and "secret" not in caplog.text
