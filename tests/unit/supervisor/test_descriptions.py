"""Is a file looked at once, however many ask, and again when it has changed?"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile, NotFound
from nvstreamd.supervisor.descriptions import MOST_AT_ONCE, Descriptions
from nvstreamd.supervisor.known import ModelFacts


class Looks:
    """Looks into files; each takes until the test lets it end."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.under_way = self.most = 0
        self.may_end = asyncio.Event()

    async def look(self, path: Path) -> ModelFacts:
        self.paths.append(path)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.may_end.wait()
        self.under_way -= 1
        if path.name == "bad.gguf":
            raise BadModelFile("bad", "fetch it again")
        return ModelFacts(layers=len(self.paths))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("one", "two", "three", "four", "bad"):
        (tmp_path / f"{name}.gguf").write_text(name)
    return tmp_path


def test_sixty_who_ask_at_once_are_one_look_and_few_files_at_a_time(files: Path) -> None:
    async def run() -> None:
        looks = Looks()
        known = Descriptions(looks.look)
        asking = [asyncio.create_task(known.of(files / "one.gguf")) for _ in range(60)]
        asking += [asyncio.create_task(known.of(files / f"{name}.gguf")) for name in ("two", "three", "four")]
        while looks.under_way < MOST_AT_ONCE:
            await asyncio.sleep(0)
        asking[0].cancel()
        looks.may_end.set()
        await asyncio.gather(*asking, return_exceptions=True)
        assert len(looks.paths) == 4 and looks.most == MOST_AT_ONCE
        assert all(done.result().layers for done in asking[1:])
        await known.of(files / "one.gguf")
        assert len(looks.paths) == 4

    asyncio.run(run())


def test_a_file_that_changed_and_a_link_are_looked_at_again(files: Path) -> None:
    async def run() -> None:
        looks = Looks()
        looks.may_end.set()
        known = Descriptions(looks.look)
        await known.of(files / "one.gguf")
        (files / "one.gguf").write_text("another")
        await known.of(files / "one.gguf")
        assert len(looks.paths) == 2
        os.symlink(files / "two.gguf", files / "link.gguf")
        for _ in range(2):
            await known.of(files / "link.gguf")
        assert len(looks.paths) == 4

    asyncio.run(run())


def test_a_refusal_is_remembered_for_a_while_and_a_missing_file_is_none(files: Path) -> None:
    async def run() -> None:
        looks = Looks()
        looks.may_end.set()
        known = Descriptions(looks.look)
        for _ in range(3):
            with pytest.raises(Exception, match="bad") as refused:
                await known.of(files / "bad.gguf")
            assert refused.value.status == "FAILED_PRECONDITION"  # type: ignore[attr-defined]
        assert len(looks.paths) == 1
        with pytest.raises(NotFound):
            await known.of(files / "missing.gguf")

    asyncio.run(run())
