"""Does a stream keep the contract that clients in every language rely on?"""

from __future__ import annotations

import json

import grpc
import pytest
from google.rpc import error_details_pb2

from nvstream.v1 import inference_pb2 as inference
from support.daemon import Daemon


def test_events_come_in_order_and_deltas_add_up(smollm2: Daemon, name: str) -> None:
    stream = smollm2.generate(name, "The capital of France is", max_tokens=6)
    kinds = [event.WhichOneof("event") for event in stream.events]
    assert kinds[0] == "accepted" and kinds[-1] == "finished"
    assert set(kinds[1:-1]) <= {"progress", "delta"}
    assert stream.events[0].accepted.request_id
    usage = stream.finished.usage
    assert usage.completion_tokens == len(stream.ids) == 6
    assert stream.finished.reason == inference.FINISH_REASON_LENGTH
    assert usage.weight_passes >= 6
    tiers = {entry.tier: entry.bytes for entry in usage.bytes}
    assert tiers[inference.TIER_NVME] > 0 and tiers[inference.TIER_RAM] > 0
    assert stream.text.startswith(" Paris")


def test_a_code_point_is_never_split(smollm2: Daemon, name: str) -> None:
    """Emoji take several byte tokens; each delta must still be whole text."""
    prompt = "Repeat: 🦜🦜🦜🦜🦜🦜🦜🦜\nRepeat: 🦜🦜🦜🦜🦜🦜🦜🦜\nRepeat:"
    stream = smollm2.generate(name, prompt, max_tokens=16)
    deltas = [event.delta for event in stream.events if event.WhichOneof("event") == "delta"]
    assert "🦜" in stream.text
    assert "\ufffd" not in "".join(delta.text for delta in deltas[:-1])
    assert any(len(delta.token_ids) > 1 for delta in deltas)


def test_a_stop_string_ends_the_text_before_it(smollm2: Daemon, name: str) -> None:
    whole = smollm2.generate(name, "1, 2, 3, 4, 5,", max_tokens=14)
    stop = whole.text[7:11]
    stream = smollm2.generate(name, "1, 2, 3, 4, 5,", max_tokens=14, stop=["never there", stop])
    assert stream.finished.reason == inference.FINISH_REASON_STOP
    assert stream.finished.stop_match == stop
    assert stream.text == whole.text[: whole.text.index(stop)]


def test_logprobs_describe_the_choice(smollm2: Daemon, name: str) -> None:
    stream = smollm2.generate(name, "The capital of France is", max_tokens=3, logprobs=4)
    assert [entry.token_id for entry in stream.logprobs] == stream.ids
    for entry in stream.logprobs:
        assert len(entry.top) == 4
        assert entry.top[0].token_id == entry.token_id and entry.top[0].logprob == entry.logprob <= 0
    none = smollm2.generate(name, "The capital of France is", max_tokens=2, logprobs=0)
    assert [len(entry.top) for entry in none.logprobs] == [0, 0]
    assert not smollm2.generate(name, "The capital of France is", max_tokens=2).logprobs


def test_a_seed_repeats_and_another_differs(smollm2: Daemon, name: str) -> None:
    options = {"max_tokens": 12, "temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    first = smollm2.generate(name, "Once", seed=7, **options)
    assert smollm2.generate(name, "Once", seed=7, **options).ids == first.ids
    assert smollm2.generate(name, "Once", seed=8, **options).ids != first.ids


def test_a_json_schema_holds_at_any_temperature(smollm2: Daemon, name: str) -> None:
    """The integer has a maximum: without one its digits end only when the draws want them to, as white space does."""
    age = {"type": "integer", "minimum": 0, "maximum": 150}
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": age},
              "required": ["name", "age"], "additionalProperties": False}
    stream = smollm2.generate(name, "JSON:", max_tokens=64, json_schema=json.dumps(schema), temperature=1.5, seed=3)
    assert stream.finished.reason == inference.FINISH_REASON_END
    value = json.loads(stream.text)
    assert set(value) == {"name", "age"} and isinstance(value["age"], int)


def test_chat_uses_the_models_template(smollm2: Daemon, name: str) -> None:
    """The same tokens as for the prompt that the template writes (ChatML, with SmolLM2's own system message)."""
    question = "Hi!"
    request = inference.ChatRequest(
        model=name, messages=[inference.ChatMessage(role="user", content=question)],
        options=inference.Options(max_tokens=40, sampling=inference.Sampling(temperature=0)))
    events = list(smollm2.inference.Chat(request))
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    written = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    generated = smollm2.generate(name, written, max_tokens=40)
    assert [token for event in events for token in event.delta.token_ids] == generated.ids
    assert events[-1].finished.reason == generated.finished.reason == inference.FINISH_REASON_END


def test_tokenize_is_what_generate_sees(smollm2: Daemon, name: str) -> None:
    answer = smollm2.inference.Tokenize(inference.TokenizeRequest(model=name, text="The capital of France is"))
    by_ids = smollm2.generate(name, list(answer.token_ids), max_tokens=4)
    by_text = smollm2.generate(name, "The capital of France is", max_tokens=4)
    assert by_ids.ids == by_text.ids
    assert by_text.finished.usage.prompt_tokens == len(answer.token_ids)


def test_closing_a_stream_frees_its_slot(smollm2: Daemon, name: str) -> None:
    stream = smollm2.open(name, "Count forever: 1 2 3", max_tokens=4000, ignore_eos=True, speculation=False)
    next(stream)
    smollm2.wait("the request to run", lambda: smollm2.engine(name).running == 1)
    stream.cancel()
    smollm2.wait("the slot to be free", lambda: smollm2.engine(name).running == 0)
    assert smollm2.engine(name).kv_pages_used == 0


def test_a_deadline_frees_the_slot(smollm2: Daemon, name: str) -> None:
    stream = smollm2.generate(name, "Count forever: 1 2 3", timeout=2.0, max_tokens=4000, ignore_eos=True,
                              speculation=False)
    assert stream.error is not None and stream.error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    smollm2.wait("the slot to be free", lambda: smollm2.engine(name).running == 0)


def test_a_long_prompt_does_not_stall_the_others(smollm2: Daemon, name: str) -> None:
    """While 600 tokens are prefilled in chunks, a running stream gets a token from each pass."""
    short = smollm2.open(name, "Count: 1 2 3", max_tokens=120, ignore_eos=True, speculation=False)
    while next(short).WhichOneof("event") != "delta":
        pass
    long = smollm2.open(name, "word " * 600, max_tokens=1)
    chunks = [event.progress for event in long if event.WhichOneof("event") == "progress"]
    rest = [event for event in short]
    assert len(chunks) >= 5 and all(chunk.phase == inference.PHASE_PREFILL for chunk in chunks)
    usage = rest[-1].finished.usage
    assert usage.weight_passes == 120


REFUSED = [
    ({"max_tokens": 0}, "options.max_tokens"),
    ({"temperature": -1.0}, "options.sampling.temperature"),
    ({"top_p": 1.5}, "options.sampling.top_p"),
    ({"stop": [""]}, "options.stop"),
    ({"logprobs": 1000}, "options.logprobs"),
    ({"json_schema": "{"}, "options.json_schema"),
]


@pytest.mark.parametrize(("options", "field"), REFUSED)
def test_a_wrong_option_is_named(smollm2: Daemon, name: str, options: dict[str, object], field: str) -> None:
    stream = smollm2.generate(name, "x", **options)
    assert stream.error is not None and stream.error.code() == grpc.StatusCode.INVALID_ARGUMENT
    found = stream.details()
    bad = found["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == field
    info = found["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo) and info.metadata["hint"]


def test_a_prompt_past_the_context_is_refused(smollm2: Daemon, name: str) -> None:
    stream = smollm2.generate(name, "word " * 9000)
    assert stream.error is not None and stream.error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "context" in stream.error.details()


def test_a_token_outside_the_vocabulary_is_refused(smollm2: Daemon, name: str) -> None:
    stream = smollm2.generate(name, [1, 2, 49152])
    assert stream.error is not None and stream.error.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_model_is_not_found(smollm2: Daemon) -> None:
    stream = smollm2.generate("no-such-model", "x")
    assert stream.error is not None and stream.error.code() == grpc.StatusCode.NOT_FOUND
