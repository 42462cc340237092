"""Is the work in a connection's bytes counted whole, however they are cut, and does a flood of it wait?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvstreamd.api.frames import WORK_OF_A_CALL, Frames
from support.http2 import DATA, PING, PREFACE, call_frames, frame, message, settings

ONE_CALL = call_frames("/a/b", message(b"x" * 300))
PINGS = frame(PING, 0, 0, b"12345678") * 5
CONNECTION = PREFACE + settings(initial_window_size=0) + ONE_CALL + PINGS + frame(DATA, 0, 1)


@given(st.lists(st.integers(0, len(CONNECTION)), max_size=40))
def test_frames_are_counted_however_the_bytes_are_cut(cuts: list[int]) -> None:
    """What was not counted would be free: pings alone kept the daemon from everybody's calls for seconds."""
    frames, ends = Frames(), [*sorted(cuts), len(CONNECTION)]
    found = sum(frames.work(CONNECTION[begin:end]) for begin, end in zip([0, *ends], ends, strict=False))
    assert found == 1 + WORK_OF_A_CALL + 1 + 5 + 1


def test_what_is_no_http2_is_counted_as_something_or_nothing_but_never_loops() -> None:
    assert Frames().work(b"") == 0
    assert Frames().work(b"GET / HTTP/1.1\r\n") == 0
    assert Frames().work(b"\xff" * (1 << 16)) == 1
    assert Frames().work(bytes(24 + 9 * 100)) == 100
