"""Does a small read bring just its bytes, wherever they lie, beside whatever the drive streams?"""

from __future__ import annotations

import random

import pytest

from nvdma.errors import CommandFailed
from nvdma.nvme.side_queue import BOUNCE_BYTES, SIDE_BYTES, SideQueue
from support.nvme_firmware import Image, Model
from support.nvme_rig import Rig, content, opened
from support.nvme_script import Effect, Rule

READ = 0x02
NBYTES = 1 << 20


def side_of(rig: Rig) -> SideQueue:
    return SideQueue(rig.controller, rig.memory(SIDE_BYTES))


@pytest.mark.parametrize("block", [512, 4096])
def test_any_offset_and_length(block: int) -> None:
    image = content(NBYTES)
    draw = random.Random(block)
    with opened({1: Image(bytearray(image), block)}, Model()) as rig:
        side = side_of(rig)
        stretches = [(0, 1), (NBYTES - 1, 1), (4095, 2), (1, 3 * BOUNCE_BYTES), (0, NBYTES)]
        stretches += [(begin, draw.randint(1, NBYTES - begin)) for begin in draw.sample(range(NBYTES), 20)]
        for offset, nbytes in stretches:
            found = side.read(rig.controller.namespace(1), offset, nbytes)
            assert found == image[offset : offset + nbytes], (offset, nbytes)


def test_the_drives_other_queue_goes_on() -> None:
    image = content(NBYTES)
    with opened({1: image}) as rig:
        side, queue = side_of(rig), rig.queue()
        entries, data = rig.small_reads(4)
        queue.submit(entries)
        assert side.read(rig.controller.namespace(1), 9000, 100) == image[9000:9100]
        assert len(rig.wait(queue)) == 4
        assert bytes(data.view[:512]) == image[:512]


def test_what_the_drive_refuses_is_named_and_the_next_read_works() -> None:
    image = content(NBYTES)
    with opened({1: image}) as rig:
        side = side_of(rig)
        rig.device.script.rules.append(Rule(Effect.FAIL, READ, status=0x281))
        with pytest.raises(CommandFailed, match="Read"):
            side.read(rig.controller.namespace(1), 0, 10)
        assert side.read(rig.controller.namespace(1), 0, 10) == image[:10]

