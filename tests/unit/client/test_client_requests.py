"""Does the server get what the caller said, with unset kept apart from zero?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nvstream
from nvstream.v1 import inference_pb2, models_pb2
from unit.client import samples
from unit.client.drivers import AsyncDriver, SyncDriver
from unit.client.peer import Peer

Driver = SyncDriver | AsyncDriver

SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 40,
    "top_p": 0.25,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.75,
    "frequency_penalty": -0.5,
    "penalty_window": 64,
    "seed": 2**63 + 1,
}


def sent(driver: Driver, peer: Peer, **options: Any) -> inference_pb2.GenerateRequest:
    """The request that reaches the server."""
    peer.script("Generate", samples.finished())
    driver.collect(driver.call("generate", "m", "x", **options))
    request: inference_pb2.GenerateRequest = peer.request()
    return request


def test_nothing_given_is_nothing_set(driver: Driver, peer: Peer) -> None:
    options = sent(driver, peer).options
    assert options.ListFields() == []
    assert sent(driver, peer, **dict.fromkeys([*SAMPLING, "max_tokens", "stop", "logprobs"])).options == options


def test_zero_is_not_unset(driver: Driver, peer: Peer) -> None:
    options = sent(driver, peer, max_tokens=0, logprobs=0, **dict.fromkeys(SAMPLING, 0)).options
    assert options.HasField("max_tokens")
    assert options.HasField("logprobs")
    assert {field.name for field, _ in options.sampling.ListFields()} == set(SAMPLING)


def test_every_option_arrives(driver: Driver, peer: Peer) -> None:
    schema = {"type": "object", "description": "ü"}
    options = sent(
        driver,
        peer,
        max_tokens=7,
        stop=["a", "b"],
        logprobs=3,
        json_schema=schema,
        ignore_eos=True,
        **SAMPLING,
    ).options
    assert {name: getattr(options.sampling, name) for name in SAMPLING} == SAMPLING
    assert (options.max_tokens, list(options.stop), options.logprobs) == (7, ["a", "b"], 3)
    assert json.loads(options.json_schema) == schema
    assert options.ignore_eos


def test_options_cover_the_protocol() -> None:
    wire = {
        *inference_pb2.Options.DESCRIPTOR.fields_by_name,
        *inference_pb2.Sampling.DESCRIPTOR.fields_by_name,
    }
    assert set(nvstream.Options.__annotations__) == wire - {"sampling"}


def test_one_stop_string_is_not_its_letters(driver: Driver, peer: Peer) -> None:
    assert list(sent(driver, peer, stop="END").options.stop) == ["END"]


def test_a_schema_as_text_is_sent_as_it_is(driver: Driver, peer: Peer) -> None:
    assert sent(driver, peer, json_schema='{ "a":1 }').options.json_schema == '{ "a":1 }'


@pytest.mark.parametrize("prompt", [[1, 2, 3], (), ""])
def test_prompts_are_text_or_token_ids(driver: Driver, peer: Peer, prompt: Any) -> None:
    peer.script("Generate", samples.finished())
    driver.collect(driver.call("generate", "m", prompt))
    request = peer.request()
    assert request.WhichOneof("prompt") == ("text" if isinstance(prompt, str) else "token_ids")
    assert list(request.token_ids.ids) == list(prompt)


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("max_tokens", 2**32), ("seed", -1)])
def test_numbers_that_do_not_fit_name_their_field(driver: Driver, name: str, value: int) -> None:
    with pytest.raises(nvstream.InvalidArgument) as caught:
        driver.call("generate", "m", "x", **{name: value})
    assert caught.value.violations[0].subject == name


@pytest.mark.parametrize(("method", "arguments", "options", "field"), [
    ("generate", ("m", "\ud83d"), {}, "prompt"),
    ("generate", ("\udcff", "x"), {}, "model"),
    ("generate", ("m", [1, "2"]), {}, "prompt"),
    ("generate", ("m", [1, -1]), {}, "prompt"),
    ("generate", ("m", 5), {}, "prompt"),
    ("generate", ("m", b"bytes"), {"temperature": "hot"}, "temperature"),
    ("generate", ("m", "x"), {"stop": 5}, "stop"),
    ("generate", ("m", "x"), {"stop": ["a", 5]}, "stop"),
    ("generate", ("m", "x"), {"seed": 0.5}, "seed"),
    ("generate", ("m", "x"), {"json_schema": {"a": object()}}, "json_schema"),
    ("generate", ("m", "x"), {"timeout": "soon"}, "timeout"),
    ("generate", ("m", "x"), {"timeout": -1}, "timeout"),
    ("chat", ("m", "not messages"), {}, "messages[0]"),
    ("chat", ("m", 5), {}, "messages"),
    ("chat", ("m", [{"role": "user", "content": None}]), {}, "messages[0].content"),
    ("chat", ("m", [{"role": "\udcff", "content": ""}]), {}, "messages[0].role"),
    ("tokenize", ("m", "\udcff"), {}, "text"),
    ("model", ("\udcff",), {}, "model"),
    ("unload", (5,), {}, "model"),
    ("load", ("m",), {"budget": "lots"}, "budget"),
    ("load", ("m",), {"kv_budget": 2**70}, "kv_budget"),
    ("load", ("m",), {"budget": 1.5}, "budget"),
    ("import_model", ("a\udcff.gguf",), {}, "source"),
    ("import_model", ("a",), {"devices": 5}, "devices"),
    ("import_model", ("a",), {"name": "\udcff"}, "name"),
])
def test_whatever_cannot_be_sent_is_an_error_of_ours_that_names_its_field(
    driver: Driver, method: str, arguments: tuple[Any, ...], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(nvstream.InvalidArgument) as caught:
        driver.call(method, *arguments, **options)
    assert caught.value.violations[0].subject == field
    str(caught.value).encode()


def test_a_timeout_beyond_all_clocks_is_none(driver: Driver, peer: Peer) -> None:
    peer.script("List", models_pb2.ListResponse())
    assert driver.call("models", timeout=float("inf")) == driver.call("models", timeout=1e300) == []


def test_a_misspelt_option_is_not_ignored(driver: Driver) -> None:
    with pytest.raises(TypeError, match="temprature"):
        driver.call("generate", "m", "x", temprature=0)


def test_conversations_take_values_and_mappings(driver: Driver, peer: Peer) -> None:
    peer.script("Chat", samples.finished())
    said = [nvstream.Message("system", "s"), {"role": "user", "content": "u"}]
    driver.collect(driver.call("chat", "m", said, temperature=0))
    request = peer.request()
    assert [(one.role, one.content) for one in request.messages] == [("system", "s"), ("user", "u")]
    assert request.options.sampling.HasField("temperature")


def test_a_message_with_other_keys_is_refused(driver: Driver) -> None:
    with pytest.raises(nvstream.InvalidArgument) as caught:
        driver.call("chat", "m", [{"role": "user", "text": "x"}])
    assert caught.value.violations[0].subject == "messages[0]"


def test_tokenize_text_and_conversations(driver: Driver, peer: Peer) -> None:
    # Beyond gRPC's default limit of 4 MiB a message.
    ids = [2**32 - 1] * 1_000_000
    peer.script("Tokenize", inference_pb2.TokenizeResponse(token_ids=ids))
    assert driver.call("tokenize", "m", "text", add_special=True) == ids
    request = peer.request()
    assert (request.text, request.add_special) == ("text", True)
    driver.call("tokenize", "m", [nvstream.Message("user", "x")])
    assert peer.request().chat.messages[0].content == "x"


def test_load_sends_sizes_only_when_given(driver: Driver, peer: Peer) -> None:
    peer.script("Load", models_pb2.LoadResponse(model=samples.serving()))
    loaded = driver.call("load", "m", budget="60MiB", kv_budget=0)
    request = peer.request()
    assert (request.budget, request.HasField("kv_budget"), request.HasField("backend")) == (
        60 << 20,
        True,
        False,
    )
    assert loaded.placement.notes == samples.NOTES
    assert loaded.placement.measured_pass_seconds == 0.05


def test_import_sends_absolute_paths_and_ends_with_the_model(
    driver: Driver, peer: Peer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    half = models_pb2.ImportProgress(bytes_done=5, bytes_total=10, bytes_resumed=2)
    peer.script(
        "Import",
        models_pb2.ImportResponse(progress=half),
        models_pb2.ImportResponse(imported=samples.serving()),
    )
    events = driver.collect(driver.call("import_model", "a.gguf", directories=["d", "/e"]))
    assert events[0] == nvstream.ImportProgress(5, 10, 2)
    assert events[1].name == "smollm2"
    request = peer.request()
    assert request.source == str(tmp_path / "a.gguf")
    assert list(request.directories) == [str(tmp_path / "d"), "/e"]
    assert not request.HasField("name") and not request.devices


def test_import_names_drives_by_their_serial_numbers_as_they_are(driver: Driver, peer: Peer) -> None:
    peer.script("Import", models_pb2.ImportResponse(imported=samples.serving()))
    driver.collect(driver.call("import_model", "/a.gguf", devices=["S5GX NX0", "../B"]))
    request = peer.request()
    assert list(request.devices) == ["S5GX NX0", "../B"] and not request.directories


def test_models_and_status(driver: Driver, peer: Peer) -> None:
    peer.script("List", models_pb2.ListResponse(models=[samples.serving(), samples.unloaded()]))
    peer.script("Get", models_pb2.GetResponse(model=samples.serving()))
    peer.script("Unload", models_pb2.UnloadResponse())
    peer.script("GetStatus", samples.daemon())
    first, second = driver.call("models")
    assert (first.state, first.facts.bytes_by_type) == (nvstream.ModelState.SERVING, {"Q8_0": 134 << 20})
    assert (second.state, second.facts, second.placement) == (nvstream.ModelState.UNLOADED, None, None)
    assert driver.call("model", "smollm2") == first
    assert driver.call("unload", "smollm2") is None
    status = driver.call("status")
    assert (status.uptime_seconds, status.caller) == (7500.0, nvstream.Caller(1000, True))
    assert status.notes == (samples.WITHOUT,)
    assert (status.engines[0].pid, status.engines[0].model) == (4711, first)
