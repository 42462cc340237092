"""Does a cheap call pass costly ones, has a user one costly call at a time, and does a cancelled one stop computing?"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from google.protobuf.message import Message

from nvstream.v1 import inference_pb2 as public
from nvstreamd.engine import commands
from nvstreamd.engine.encoder import Encoder
from nvstreamd.engine.from_daemon import command_of
from nvstreamd.engine.preparation.desk import Desk, Job
from nvstreamd.engine.preparation.forks import Forks
from nvstreamd.engine.preparation.preparer import Preparer
from nvstreamd.engine.preparation.questions import CHEAP, Ask
from nvstreamd.engine.preparation.remembered import MOST_BYTES_OF_A_USER, Remembered
from nvstreamd.engine.preparation.worker import work
from nvstreamd.engine.prompts import Prompts
from nvstreamd.engine.request import Request
from nvstreamd.engine.threads import Threads
from nvstreamd.engine.tokenizer import load
from nvstreamd.errors import InvalidRequest, NvstreamError
from nvstreamd.wire.engine_pb2 import Encode, Encoded, Failure, FromEngine, Run, ToEngine
from support.files import SMOLLM2
from support.vocab_gguf import read_metadata

SECONDS = 60.0
LIMIT = 2048


def call_of(message: Run | Encode) -> commands.Call:
    """What an engine makes of that message."""
    found = command_of(ToEngine(run=message) if isinstance(message, Run) else ToEngine(encode=message))
    assert isinstance(found, commands.Run | commands.Encode)
    return found


def job(number: int, uid: int, cost: int) -> Job:
    return Job(text(number, uid, "x", 1), [], cost)


def taken(desk: Desk, costly: bool) -> list[int]:
    found = []
    while (one := desk.take(costly)) is not None:
        found.append(one.id)
    return found


def test_users_take_turns_and_each_has_one_costly_call_at_a_time() -> None:
    desk = Desk()
    costly = [job(number, uid, CHEAP + 1) for number, uid in ((1, 1), (2, 1), (3, 1), (4, 2))]
    for each in (*costly, job(5, 1, 1), job(6, 1, 1), job(7, 2, 1)):
        desk.put(each)
    assert taken(desk, costly=False) == [5, 7, 6]
    assert taken(desk, costly=True) == [1, 4]
    desk.done(costly[0])
    assert taken(desk, costly=True) == [2]
    assert desk.remove(costly[2]) and not desk.remove(costly[2])
    desk.done(costly[1])
    assert taken(desk, costly=True) == []


def ask(text: str) -> Ask:
    return Ask.of_schema(text, CHEAP + 1)


def test_an_answer_is_the_users_own_and_the_oldest_make_way() -> None:
    memory = Remembered(most=3 * MOST_BYTES_OF_A_USER)
    no = FromEngine(failure=Failure(status="INVALID_ARGUMENT", message="no"))
    memory.keep(1, ask("a"), no)
    assert memory.find(1, ask("a")) == no
    assert memory.find(2, ask("a")) is None and memory.find(1, ask("b")) is None
    large = FromEngine(encoded=Encoded(schema="x" * (MOST_BYTES_OF_A_USER // 3)))
    for number in range(10):
        memory.keep(1, ask(str(number)), large)
    assert memory.find(1, ask("a")) is None and memory.find(1, ask("9")) == large
    for uid in range(2, 12):
        memory.keep(uid, ask("x"), large)
    assert memory._bytes <= 3 * MOST_BYTES_OF_A_USER
    memory.keep(3, ask("huge"), FromEngine(encoded=Encoded(schema="x" * MOST_BYTES_OF_A_USER)))
    assert memory.find(3, ask("huge")) is None


class Heard:
    """What became of calls, as they come."""

    def __init__(self) -> None:
        self.outcomes: queue.Queue[tuple[int, object]] = queue.Queue()

    def ready(self, request: Request) -> None:
        self.outcomes.put((request.id, request))

    def encoded(self, call: int, response: Message) -> None:
        self.outcomes.put((call, response))

    def failed(self, call: int, error: NvstreamError) -> None:
        self.outcomes.put((call, error))

    def next(self) -> tuple[int, object]:
        return self.outcomes.get(timeout=SECONDS)


class Kitchen:
    """A preparer with real workers, a real tokenizer, and who hears of its results."""

    def __init__(self, stack: ExitStack) -> None:
        metadata = read_metadata(SMOLLM2)
        tokenizer = load(metadata)
        encoder = Encoder(metadata, tokenizer)
        forks = Forks(lambda channel, costly: work(channel, encoder, costly))
        forks.start(stack)
        self.heard = Heard()
        self.threads_failed: list[NvstreamError] = []
        threads = Threads(self.threads_failed.append)
        self.preparer = Preparer(Prompts(tokenizer, tokenizer.vocab_size, LIMIT), forks, self.heard, threads.run)
        self.preparer.start(stack)


@pytest.fixture(scope="module")
def kitchen() -> Iterator[Kitchen]:
    with ExitStack() as stack:
        made = Kitchen(stack)
        yield made
        assert not made.threads_failed


def text(number: int, uid: int, characters: str, times: int) -> commands.Call:
    return call_of(Encode(id=number, uid=uid, text=characters * times))


def test_cheap_calls_pass_costly_ones_of_the_same_user(kitchen: Kitchen) -> None:
    for number in range(3):
        kitchen.preparer.submit(text(number, 1, f"{number} é", 100_000))
    kitchen.preparer.submit(text(10, 1, "cheap", 1))
    kitchen.preparer.submit(text(11, 2, "cheap", 1))
    order = [kitchen.heard.next()[0] for _ in range(5)]
    assert set(order[:2]) == {10, 11} and order[2:] == [0, 1, 2]


def test_a_cancelled_call_stops_and_says_nothing_and_the_next_goes_on(kitchen: Kitchen) -> None:
    kitchen.preparer.submit(text(1, 1, "é", 1 << 21))
    kitchen.preparer.submit(text(2, 1, "waits é", 100_000))
    assert kitchen.preparer.cancel(1) and kitchen.preparer.cancel(2)
    assert not kitchen.preparer.cancel(1)
    kitchen.preparer.submit(text(3, 1, "goes on", 10_000))
    assert kitchen.heard.next()[0] == 3
    assert not kitchen.preparer.has_work


def test_what_takes_too_much_memory_is_refused_and_refused_at_once_when_it_comes_again(kitchen: Kitchen) -> None:
    for number in (1, 2):
        kitchen.preparer.submit(text(number, 1, "🦜", 1_500_000))
        call, error = kitchen.heard.next()
        assert call == number and isinstance(error, InvalidRequest | NvstreamError)
        assert error.status == "INVALID_ARGUMENT" and "🦜" not in str(error)
    kitchen.preparer.submit(text(3, 1, "good", 1))
    assert isinstance(kitchen.heard.next()[1], public.TokenizeResponse)


REFUSED: list[tuple[Callable[[], Run | Encode], str]] = [
    (lambda: Run(text="word " * 10**6), "prompt"),
    (lambda: Run(token_ids=public.TokenIds(ids=[1] * LIMIT)), "prompt"),
    (lambda: Run(token_ids=public.TokenIds()), "prompt"),
    (lambda: Run(chat=public.ChatInput(messages=[public.ChatMessage(role="user")] * (LIMIT + 1))), "prompt"),
    (lambda: Run(text="x", options=public.Options(stop=["y"] * 100_000)), "options.stop"),
    (lambda: Encode(text="x" * (9 << 20)), "prompt"),
    (lambda: Run(text="x" * 3000, longest_context=20), "prompt"),
]


@pytest.mark.parametrize(("call", "field"), REFUSED)
def test_what_cannot_fit_is_refused_before_any_work(kitchen: Kitchen, call: Callable[[], Run | Encode],
                                                    field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        kitchen.preparer.submit(call_of(call()))
    assert refused.value.field == field
    assert not kitchen.preparer.has_work


def test_a_schema_is_checked_beside_everything_else_and_its_refusal_is_remembered(kitchen: Kitchen) -> None:
    options = public.Options(json_schema='{"type": "string", "pattern": "("}')
    for number in (1, 2):
        kitchen.preparer.submit(call_of(Run(id=number, uid=1, text=f"{number} x", options=options)))
        call, error = kitchen.heard.next()
        assert call == number and isinstance(error, NvstreamError) and error.field == "options.json_schema"
    good = public.Options(json_schema='{"type": "integer"}')
    kitchen.preparer.submit(call_of(Run(id=3, uid=1, text="x", options=good)))
    _, request = kitchen.heard.next()
    assert isinstance(request, Request) and request.constraint is not None


def test_a_worker_that_is_killed_costs_its_call_alone(kitchen: Kitchen) -> None:
    """The kernel may do that when memory runs out."""
    kitchen.preparer.submit(text(1, 1, "é", 1 << 21))
    other = text(2, 2, "another é", 50_000)
    killed = threading.Event()
    while not killed.is_set():
        with kitchen.preparer._changed:
            for under_way, worker in kitchen.preparer._workers.items():
                if under_way.id == 1:
                    worker.end()
                    killed.set()
    kitchen.preparer.submit(other)
    outcomes = dict(kitchen.heard.next() for _ in range(2))
    assert isinstance(outcomes[1], NvstreamError) and isinstance(outcomes[2], public.TokenizeResponse)


def test_a_worker_that_died_of_others_costs_a_cheap_call_nothing(kitchen: Kitchen) -> None:
    kitchen.preparer.submit(text(1, 1, "first", 1))
    assert isinstance(kitchen.heard.next()[1], public.TokenizeResponse)
    killed = [path for path in Path("/proc").glob("[0-9]*") if _is_idle_worker(path)]
    for path in killed:
        os.kill(int(path.name), signal.SIGKILL)
    assert killed
    kitchen.preparer.submit(text(2, 1, "second", 1))
    assert isinstance(kitchen.heard.next()[1], public.TokenizeResponse)


def _is_idle_worker(path: Path) -> bool:
    """Whether a process is a fork of the fork of this test, and no nicer than it: the worker of the cheap lane."""
    try:
        parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return False
    if grandparent != os.getpid():
        return False
    return os.getpriority(os.PRIO_PROCESS, int(path.name)) == os.getpriority(os.PRIO_PROCESS, os.getpid())
