"""Do passes in machines that nobody here has take about as long as their bytes need? By a clock that only counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.boxes.box import BOXES, Box
from support.boxes.clock import Channel, Clock, Ended, Work
from support.boxes.shapes import written
from support.boxes.simulate import simulate

BY_NAME = {box.name: box for box in BOXES}
# Of a tenth, a little is left to what rounding to whole layers costs where there is room for few of them.
AT_MOST, WITH_LITTLE_RAM = 1.10, 1.12
DENSE = [("3090", "70B", 1), ("3090", "70B", 8), ("4090", "70B", 8), ("4090 small", "70B", 8)]
LONG = [("4090", "32B", 32), ("5090", "70B", 32), ("5090", "30B-A3B", 32), ("3090", "235B-A22B", 1),
        ("5090", "235B-A22B", 1), ("3090", "235B-A22B", 8)]


def check(tmp_path: Path, name: str, model: str, users: int) -> None:
    found = simulate(BY_NAME[name], written(model, tmp_path), users)
    bar = WITH_LITTLE_RAM if name == "4090 small" else AT_MOST
    assert 1.0 <= found.over_bound <= bar, f"{found.seconds:.4f} s a pass, the bound is {found.bound:.4f} s"
    assert found.predicted == pytest.approx(found.seconds, rel=0.15)


@pytest.mark.parametrize(("name", "model", "users"), DENSE)
def test_a_pass_over_several_tiers_takes_as_long_as_the_busiest_part(
        tmp_path: Path, name: str, model: str, users: int) -> None:
    check(tmp_path, name, model, users)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "model", "users"), LONG)
def test_one_for_many_users_or_of_experts_does_as_well(tmp_path: Path, name: str, model: str, users: int) -> None:
    check(tmp_path, name, model, users)


def test_what_moves_at_once_shares_ram() -> None:
    clock = Clock(memory_rate=100.0)
    link, drive = Channel(clock, 60.0), Channel(clock, 20.0)
    first, second = Ended(clock), Ended(clock)
    link.put(600.0, first.end)
    drive.put(100.0, second.end)
    second.wait(0.0)
    assert clock.now == pytest.approx(5.0), "80 of 100: nobody is slower"
    products = Ended(clock)
    clock.begin(Work(240.0, 60.0, products.end))
    products.wait(0.0)
    # 300 are left of what the link moves; both are as fast as half of what there is.
    assert clock.now == pytest.approx(5.0 + 240.0 / 50.0) and not first.done()
    first.wait(0.0)
    assert clock.now == pytest.approx(5.0 + 4.8 + 60.0 / 60.0)


def test_a_box_measures_what_it_gives_at_once() -> None:
    box = Box("test", "", 1, 1, 1.0, 100.0, 100.0, 1.0, 1, 4)
    both = box.at_once
    assert both.products[1] + both.links[1] == pytest.approx(box.memory)
    # Wide products are no burden for RAM.
    assert both.links[32] > both.links[1] and both.products[32] == pytest.approx(box.host(32))
