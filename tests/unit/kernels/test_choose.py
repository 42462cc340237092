"""Which kernels are taken, and does status get to know why others were not?"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvstreamd.errors import KernelError
from nvstreamd.kernels.cpu_library import CpuLibrary
from nvstreamd.kernels.select import beside_a_card, choose


def test_the_best_instruction_set_is_taken_and_named() -> None:
    with ExitStack() as stack:
        kernels = choose(("cpu", "torch"), 2, stack)
    assert kernels.device.name == f"C++ for {CpuLibrary().best().name}, 2 threads"
    assert not kernels.notes


def test_without_the_library_the_reference_works_and_the_remedy_is_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        kernels = choose(("cpu", "torch"), 1, stack, tmp_path / "none.so")
        assert kernels.device.name == "torch"
    assert len(kernels.notes) == 1 and "g++" in kernels.notes[0]


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    source, library = tmp_path / "other.cpp", tmp_path / "other.so"
    names = ("kernel_name", "open", "close", "check", "run", "angles", "read")
    body = "".join(f"void nv_{name}() {{}}\n" for name in names)
    source.write_text(f'extern "C" {{ int nv_abi() {{ return 999; }}\n{body}}}\n')
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)
    with ExitStack() as stack:
        kernels = choose(("cpu", "torch"), 1, stack, library)
        assert kernels.device.name == "torch" and "999" in kernels.notes[0]
        with pytest.raises(KernelError, match="999"):
            choose(("cpu",), 1, stack, library)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF, cut off")
    with ExitStack() as stack, pytest.raises(KernelError, match=r"broken\.so"):
        choose(("cpu",), 1, stack, broken)


def test_threads_that_cannot_start_are_an_error_and_no_hang() -> None:
    """In a process of its own: address space for a few stacks only."""
    script = (
        "import resource\n"
        "from contextlib import ExitStack\n"
        "from nvstreamd.kernels.select import choose\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "with ExitStack() as stack:\n"
        "    print(choose(('cpu', 'torch'), 64, stack).notes)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert "could not start 64 threads" in done.stdout + done.stderr


def run(script: str) -> str:
    """What a Python process of its own prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_an_engine_with_compiled_kernels_never_imports_torch() -> None:
    """Torch is 190 MiB of memory and some seconds at each start of an engine."""
    assert run(
        "import sys\n"
        "from contextlib import ExitStack\n"
        "import nvstreamd.engine.service\n"
        "from nvstreamd.kernels.select import choose\n"
        "with ExitStack() as stack:\n"
        "    choose(('cpu', 'torch'), 2, stack)\n"
        "print('torch' in sys.modules)\n"
    ) == "False\n"


def test_torch_may_be_missing() -> None:
    assert run(
        "import sys\n"
        "from contextlib import ExitStack\n"
        "from nvstreamd.kernels.select import choose\n"
        "sys.modules['torch'] = None\n"
        "with ExitStack() as stack:\n"
        "    kernels = choose(('torch', 'cpu'), 2, stack)\n"
        "print(kernels.device.name.split()[0], kernels.notes[0].split(':')[0])\n"
    ) == "C++ torch kernels refused\n"


def test_a_processor_beside_a_card_leaves_some_threads_to_others_and_keeps_one() -> None:
    """One that shares its processor makes all others of a product wait for it."""
    assert [beside_a_card(threads) for threads in (1, 2, 4, 8, 16, 32)] == [1, 1, 3, 7, 14, 28]


def test_whoever_waits_for_a_card_keeps_no_other_thread_from_running() -> None:
    """A C function is asked until another thread, which needs the interpreter, makes it answer otherwise."""
    asked = ctypes.create_string_buffer(b"abc")
    length = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value or 0
    begins = threading.Event()

    def empty() -> None:
        begins.wait(60.0)
        asked[0] = b"\0"

    thread = threading.Thread(target=empty)
    thread.start()
    begins.set()
    assert CpuLibrary().ask(length, ctypes.addressof(asked), 3, 60.0, 60.0) == 0
    thread.join(60.0)


@pytest.mark.parametrize("eager", [0.0, 1.0])
def test_a_question_that_is_never_answered_ends_at_its_deadline(eager: float) -> None:
    asked = ctypes.create_string_buffer(b"abc")
    length = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value or 0
    assert CpuLibrary().ask(length, ctypes.addressof(asked), 3, 0.01, eager) == 3
