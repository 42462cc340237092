"""Do the module's header and its Python side mean the same numbers and structures?"""

from __future__ import annotations

import subprocess
from pathlib import Path

from nvdma.pci import kmod_calls

HEADER = Path(__file__).resolve().parents[3] / "kmod/nvstream/nvstream.h"
CALLS = {
    "NVSTREAM_GET_CAPS": (kmod_calls.GET_CAPS, kmod_calls.CAPS.size, "caps"),
    "NVSTREAM_PIN": (kmod_calls.PIN_MEMORY, kmod_calls.PIN.size, "pin"),
    "NVSTREAM_MAP_BAR": (kmod_calls.MAP_PEER, kmod_calls.MAP_BAR.size, "map_bar"),
    "NVSTREAM_MAP_DMABUF": (kmod_calls.MAP_EXPORTED, kmod_calls.MAP_DMABUF.size, "map_dmabuf"),
    "NVSTREAM_GET_PAGES": (kmod_calls.GET_PAGES, kmod_calls.PAGES.size, "pages"),
    "NVSTREAM_UNMAP": (kmod_calls.UNMAP_HANDLE, kmod_calls.UNMAP.size, "unmap"),
}
WITHOUT_ARGUMENT = {"NVSTREAM_SET_MASTER": kmod_calls.SET_MASTER, "NVSTREAM_QUIESCE": kmod_calls.QUIESCE}


def test_numbers_and_sizes_are_the_headers(tmp_path: Path) -> None:
    lines = [f'printf("{name} %lu %zu\\n", (unsigned long){name}, sizeof(struct nvstream_{struct}));'
             for name, (_, _, struct) in CALLS.items()]
    lines += [f'printf("{name} %lu 0\\n", (unsigned long){name});' for name in WITHOUT_ARGUMENT]
    lines.append('printf("NVSTREAM_ABI %d 0\\n", NVSTREAM_ABI);')
    source = tmp_path / "numbers.c"
    source.write_text(f'#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{ {"".join(lines)} return 0; }}\n')
    subprocess.run(["cc", "-Wall", "-Werror", "-o", tmp_path / "numbers", source], check=True)
    printed = subprocess.run([tmp_path / "numbers"], capture_output=True, text=True, check=True).stdout
    found = {name: (int(number), int(size)) for name, number, size in map(str.split, printed.splitlines())}
    expected = {name: (number, size) for name, (number, size, _) in CALLS.items()}
    expected |= {name: (number, 0) for name, number in WITHOUT_ARGUMENT.items()}
    assert found == expected | {"NVSTREAM_ABI": (kmod_calls.ABI, 0)}
