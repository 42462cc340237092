"""Does a client get all that an engine says, and an engine all that a client asks, through the daemon's own words?"""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from nvstream.v1 import inference_pb2 as public
from nvstream.v1 import models_pb2 as models
from nvstreamd.api.convert import FORMATS, PHASES, STATES, event_message, model_message, progress_message, prompt_of
from nvstreamd.supervisor import commands
from nvstreamd.supervisor.commands import RunOrder, Terms
from nvstreamd.supervisor.events import Accepted, Phase, Progress
from nvstreamd.supervisor.known import Listed, State
from nvstreamd.supervisor.reports import Ended, Loaded, PackProgress, Tokens
from nvstreamd.supervisor.to_engine import digest_of, message_of
from nvstreamd.wire import engine_pb2 as wire
from support.calls import report


@pytest.mark.parametrize(("words", "enum"), [(STATES, models.ModelState), (FORMATS, models.ModelFormat),
                                             (PHASES, public.Phase)])
def test_each_word_of_the_protocol_has_one_of_ours(words: dict[object, int], enum: EnumTypeWrapper) -> None:
    assert set(words.values()) | {0} == set(enum.values())
    assert all(word.name in enum.Name(number) for word, number in words.items() if number)  # type: ignore[attr-defined]


def filled(message: Message) -> None:
    """Sets each field to another value, so that none can be forgotten or taken for another."""
    for number, field in enumerate(message.DESCRIPTOR.fields, start=1):
        if field.name == "bytes_by_type":
            message.bytes_by_type["Q4_0"] = number  # type: ignore[attr-defined]
        elif field.is_repeated:
            getattr(message, field.name).append(f"note {number}")
        elif field.enum_type is not None:
            setattr(message, field.name, field.enum_type.values[-1].number)
        else:
            setattr(message, field.name, str(number) if field.type == field.TYPE_STRING else number)


def test_facts_and_placement_reach_the_client_whole() -> None:
    facts, placement = models.ModelFacts(), models.Placement()
    filled(facts)
    filled(placement)
    said = report(loaded=wire.Loaded(facts=facts, placement=placement))
    assert isinstance(said, Loaded)
    model = model_message(Listed("m", Path("/m.gguf"), State.SERVING, said.facts, said.placement))
    assert model.facts == facts and model.placement == placement
    assert (model.name, model.path, model.state) == ("m", "/m.gguf", models.MODEL_STATE_SERVING)
    unseen = model_message(Listed("m", Path("/m.gguf")))
    assert not unseen.HasField("facts") and not unseen.HasField("placement")


def test_the_progress_of_an_import_reaches_the_client_whole() -> None:
    progress = models.ImportProgress()
    filled(progress)
    said = report(pack_progress=wire.PackProgress(progress=progress))
    assert isinstance(said, PackProgress) and progress_message(said) == progress


def test_an_answer_reaches_the_client_as_the_engine_made_it() -> None:
    delta = public.Delta(token_ids=[1, 2], text="é", logprobs=[
        public.TokenLogprob(token_id=1, logprob=-1.0, top=[public.TopLogprob(token_id=2, logprob=-2.0)])])
    said = report(tokens=wire.Tokens(id=7, delta=delta))
    assert isinstance(said, Tokens) and event_message(said.delta) == public.StreamEvent(delta=delta)
    finished = public.Finished(reason=public.FINISH_REASON_STOP, stop_match="x", usage=public.Usage(prompt_tokens=3))
    ended = report(ended=wire.Ended(id=7, finished=finished))
    assert isinstance(ended, Ended) and event_message(ended.finished) == public.StreamEvent(finished=finished)


def test_a_wait_that_nobody_knows_is_unset() -> None:
    assert not event_message(Accepted("m-1", 2)).accepted.HasField("eta")
    assert event_message(Accepted("m-1", 2, 1.5)).accepted.eta.ToMilliseconds() == 1500
    progress = event_message(Progress(Phase.QUEUED, 1, 2, 0.25)).progress
    assert (progress.done, progress.total, progress.eta.ToMilliseconds()) == (1, 2, 250)


@pytest.mark.parametrize("prompt", [{"text": "hello"}, {"token_ids": public.TokenIds(ids=[1, 2, 3])}])
def test_a_request_reaches_the_engine_whole_and_a_seed_does_not_make_it_another(prompt: dict[str, object]) -> None:
    request = public.GenerateRequest(**prompt)  # type: ignore[arg-type]
    request.options.max_tokens, request.options.sampling.seed = 5, 77
    order = RunOrder(3, prompt_of(request), request.options, Terms(1000, 2.0, True, 99, seed=1))
    run = message_of(commands.Run(9, order, [4, 5])).run
    expected = wire.Run(id=9, uid=3, options=request.options, sent_token_ids=[4, 5], weight=2.0, batch=True,
                        longest_context=99, share=1000, **prompt)  # type: ignore[arg-type]
    assert run == expected
    again = public.Options(max_tokens=5, sampling=public.Sampling(seed=78))
    assert digest_of(RunOrder(3, order.prompt, again, order.terms)) == digest_of(order)
    other = public.Options(max_tokens=6)
    assert digest_of(RunOrder(3, order.prompt, other, order.terms)) != digest_of(order)
