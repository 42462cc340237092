"""Whose entry is a user's, and what does a request get from it?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nvstream.v1 import inference_pb2 as public
from nvstreamd.config import Config, QuotaConfig
from nvstreamd.errors import QuotaExceeded
from nvstreamd.supervisor import commands
from nvstreamd.supervisor.admission import Admission, Ticket
from nvstreamd.supervisor.commands import Prompt, RunOrder
from nvstreamd.supervisor.quotas import Quotas
from nvstreamd.supervisor.to_engine import message_of
from nvstreamd.wire.engine_pb2 import Run

STRANGER = 54321


def entries() -> list[QuotaConfig]:
    return [QuotaConfig(weight=0.5), QuotaConfig(group="root", weight=2), QuotaConfig(user="root", weight=4),
            QuotaConfig(user=str(STRANGER), weight=3)]


def test_a_name_wins_over_a_group_and_that_over_the_general_entry() -> None:
    quotas = Quotas(entries())
    assert quotas.of(0, 0).weight == 4
    assert quotas.of(STRANGER, STRANGER).weight == 3
    # Nobody's account, but the connection's primary group is root's.
    assert quotas.of(STRANGER + 1, 0).weight == 2
    assert quotas.of(STRANGER + 1, STRANGER).weight == 0.5
    assert Quotas([]).of(0, 0) == QuotaConfig()


@pytest.fixture
def admission(tmp_path: Path) -> Admission:
    quotas = (QuotaConfig(user=str(STRANGER), weight=2.5, priority="batch", requests=2, longest_context=99),)
    return Admission(Config(socket=tmp_path, store=tmp_path, claims=tmp_path, usage=tmp_path / "usage.json",
                            quotas=quotas, max_running=1, max_queued=3))


def run_of(ticket: Ticket, options: public.Options) -> Run:
    """What an engine gets of a request that was let in."""
    order = RunOrder(STRANGER, Prompt("text", "x"), options, ticket.terms)
    return message_of(commands.Run(1, order)).run


def test_a_request_carries_its_share_and_a_seed(admission: Admission) -> None:
    run = run_of(admission.admit("model", STRANGER, STRANGER), public.Options())
    assert (run.share, run.weight, run.batch, run.longest_context) == (STRANGER, 2.5, True, 99)
    assert run.options.sampling.HasField("seed")
    ticket = admission.admit("model", os.getuid(), 0)
    assert run_of(ticket, public.Options(sampling=public.Sampling(seed=0))).options.sampling.seed == 0
    drawn = [run_of(ticket, public.Options()).options.sampling.seed for _ in range(2)]
    assert drawn[0] == drawn[1], "another engine draws the same tokens"


def test_open_requests_are_bounded_over_all_models_and_places_in_each(admission: Admission) -> None:
    tickets = [admission.admit(name, STRANGER, STRANGER) for name in ("one", "two")]
    with pytest.raises(QuotaExceeded) as refused:
        admission.admit("three", STRANGER, STRANGER)
    assert refused.value.field == "requests"
    tickets[0].release()
    admission.admit("three", STRANGER, STRANGER)
    for _ in range(4):
        admission.admit("one", 1, 1)
    with pytest.raises(QuotaExceeded, match="requests for one"):
        admission.admit("one", 1, 1)
    admission.admit("one", 2, 2)
    assert admission.requests(1) == 4
