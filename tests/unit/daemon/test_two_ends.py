"""Do the daemon and its engine understand each other? What one end writes is what the other reads, field by field."""

from __future__ import annotations

import pytest

from nvstream.v1 import inference_pb2 as public
from nvstream.v1 import models_pb2 as models
from nvstreamd.engine import commands as heard
from nvstreamd.engine import reports as said
from nvstreamd.engine import to_daemon
from nvstreamd.engine.commands import Written
from nvstreamd.engine.from_daemon import command_of, parsed
from nvstreamd.errors import ProtocolError
from nvstreamd.supervisor import commands, reports
from nvstreamd.supervisor.from_engine import parsed as report_in
from nvstreamd.supervisor.from_engine import report_of
from nvstreamd.supervisor.known import Format, ModelFacts, Placement
from nvstreamd.supervisor.to_engine import message_of
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.wire import engine_pb2 as engine
from nvstreamd.wire.engine_pb2 import Prepare

FILE = OpenFile(7, "/models/a.gguf", 100, 1, 2)
CLAIMED = OpenFile(-1, "/store/part", 200, 0, 0)
TERMS = commands.Terms(share=20_001, weight=2.0, batch=True, longest_context=64, seed=9)


def run(prompt: commands.Prompt, options: public.Options | None = None, sent: tuple[int, ...] = ()) -> heard.Run:
    order = commands.RunOrder(1001, prompt, options or public.Options(), TERMS)
    found = command_of(message_of(commands.Run(5, order, sent)))
    assert isinstance(found, heard.Run)
    return found


def question(written: object) -> Prepare:
    assert isinstance(written, Written)
    return Prepare.FromString(written.pack())


def test_a_request_keeps_its_user_its_terms_and_its_ids() -> None:
    found = run(commands.Prompt("token_ids", public.TokenIds(ids=[3, 4])), sent=(8, 9))
    assert (found.id, found.uid, found.share, found.weight, found.batch, found.longest_context) == (
        5, 1001, 20_001, 2.0, True, 64)
    assert not isinstance(found.prompt, Written)
    assert (list(found.prompt), list(found.sent)) == ([3, 4], [8, 9])


def test_options_that_were_not_said_are_none_and_a_zero_that_was_is_one() -> None:
    nothing = run(commands.Prompt("text", "x")).options
    # The daemon draws a seed.
    assert nothing == heard.Options(sampling={"seed": 9}, stop=nothing.stop) and not nothing.stop
    sampling = public.Sampling(temperature=0, top_k=7, seed=0)
    asked = run(commands.Prompt("text", "x"), public.Options(
        max_tokens=0, sampling=sampling, stop=["a", "b"], json_schema="", logprobs=0, ignore_eos=True,
        speculation=False)).options
    assert asked == heard.Options(0, {"temperature": 0.0, "top_k": 7, "seed": 0}, asked.stop, "", True, False, 0)
    assert list(asked.stop) == ["a", "b"]


def test_what_is_written_goes_to_a_worker_without_the_number_of_its_call() -> None:
    text = run(commands.Prompt("text", "né")).prompt
    assert isinstance(text, Written) and (text.size, text.messages) == (3, None)
    assert question(text).encode.text == "né" and question(text).encode.add_special and not question(text).encode.id
    chat = public.ChatInput(messages=[public.ChatMessage(role="user", content="hi")] * 2)
    spoken = run(commands.Prompt("chat", chat)).prompt
    assert isinstance(spoken, Written) and (spoken.size, spoken.messages) == (chat.ByteSize(), 2)
    assert question(spoken).encode.chat == chat
    order = commands.EncodeOrder(1001, 20_001, commands.Prompt("text", "né"), add_special=False)
    asked = command_of(message_of(commands.Encode(6, order)))
    assert isinstance(asked, heard.Encode) and (asked.id, asked.uid, asked.share) == (6, 1001, 20_001)
    assert question(asked.written).encode.text == "né" and not question(asked.written).encode.add_special


def test_the_first_command_names_files_drives_and_settings() -> None:
    settings = commands.Settings(1, 2, 3, ["uring"], ["cpu"], 4, 5, 6, 0.5, 7, 8)
    drives = [commands.PassedDrive("S", "0000:01:00.0", "vfio")]
    files = [heard.File("/models/a.gguf"), heard.File("/store/part", 200)]
    assert command_of(message_of(commands.Load(settings, [FILE, CLAIMED], ["pread"], drives))) == heard.Load(
        files, memory=1, budget=2, kv_budget=3, backends=("pread",), kernels=("cpu",), threads=4, max_running=5,
        prefill_chunk=6, max_context=7, latency_seconds=0.5, drives=[heard.ClaimedDrive("S", "0000:01:00.0", "vfio")],
        vram=8)
    assert command_of(message_of(commands.Describe([FILE]))) == heard.Describe(files[:1])
    onto = commands.Pack([FILE], "m", "/store", ["/d"], [commands.BlockDrive("S", 1, "/dev/nvme0n1")])
    assert command_of(message_of(onto)) == heard.Pack(files[:1], "m", "/store", ["/d"],
                                                      [heard.Device("S", 1, "/dev/nvme0n1")])
    assert command_of(message_of(commands.Cancel(5))) == heard.Cancel(5)


def test_an_empty_command_is_refused() -> None:
    with pytest.raises(ProtocolError):
        parsed(b"")


def test_what_an_engine_says_of_itself_is_what_the_daemon_takes() -> None:
    facts = said.Facts("llama", True, 1, 2, 3, 4, {"Q8_0": 5}, 6, 7, 8, "A model", "0.2")
    known = ModelFacts("llama", Format.PACKED, 1, 2, 3, 4, {"Q8_0": 5}, 6, 7, 8, "A model", "0.2")
    assert report_of(to_daemon.described_message(facts, "/m")) == reports.Described(known, "/m")
    loaded = to_daemon.loaded_message(facts, models.Placement(budget=9, notes=["a"]))
    assert report_of(loaded) == reports.Loaded(known, Placement(budget=9, notes=("a",)))
    assert report_of(to_daemon.progress_message(1, 2, 3)) == reports.PackProgress(1, 2, 3)
    for eta in (None, 0.0):
        assert report_of(to_daemon.queued_message(said.Queued(1, 2, 3, eta))) == reports.Queued(1, 2, 3, eta)
    assert report_of(to_daemon.beat_message(said.Beat(1, True, None, 2))) == reports.Beat(1, True, 0.0, 2)
    stats = said.Stats(1, 2, 3, 4, 5, 6, 7, None, 0.5, 8.0, 9, [said.UserLoad(1001, 1, 2, 3.0)], 10, 11, (12,), (13,))
    assert report_of(to_daemon.stats_message(stats)) == reports.Stats(
        running=1, queued=2, passes=3, streamed_bytes=4, tokens_generated=5, kv_pages_used=6, kv_pages_total=7,
        pass_seconds=None, predicted_pass_seconds=0.5, read_bytes_per_second=8.0, peak_weight_bytes=9,
        users=(reports.UserLoad(1001, 1, 2),), proposed_tokens=10, accepted_tokens=11,
        expert_hits=(12,), expert_misses=(13,))
    response = public.TokenizeResponse(token_ids=[1, 2])
    assert report_of(to_daemon.encoded_message(5, response)) == reports.Encoded(5, response)


def test_figures_that_no_engine_of_ours_would_send_are_none() -> None:
    """What every look at the status repeats is small, and what belongs together comes together."""
    for wrong in (engine.Stats(expert_hits=[1, 2], expert_misses=[1]), engine.Stats(expert_hits=[1] * (1 << 18),
                                                                                     expert_misses=[1] * (1 << 18)),
                  engine.Stats(users=[engine.UserLoad(uid=1)] * (1 << 17))):
        with pytest.raises(ProtocolError):
            report_in(engine.FromEngine(stats=wrong).SerializeToString())
