"""How does a unit become machine code for the card that is there? By NVRTC, once: the result is kept on disk.

gpu_kept.py says where. Its name is a hash of all that it depends on.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from nvstreamd.errors import KernelError
from nvstreamd.kernels.gpu_kept import Kept
from nvstreamd.kernels.gpu_units import SOURCES, WORDS, Unit, digest, sources

log = logging.getLogger(__name__)

WORDS_OF_CUDA = SOURCES / "words_cuda.h"
# Nothing is fused, nothing flushed to zero, division and square root are rounded: ARITHMETIC.md, section 1.
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true",
           "--device-as-default-execution-space",
           # Those that the blocks' attributes for GCC cause would leave no room for an error in a message.
           "--disable-warnings")
INSTALL = "install cuda-bindings and nvidia-cuda-nvrtc (nvstreamd[cuda13], or nvstreamd[cuda12] for drivers before 580)"


class Nvrtc:
    """Compiles for a compute capability. `kept` is a folder for what was compiled, or None. Raises KernelError."""

    def __init__(self, capability: int, kept: Path | None) -> None:
        self.capability = capability
        self.kept = None if kept is None else Kept(kept)
        try:
            from cuda.bindings import nvrtc
        except ImportError as error:
            raise KernelError(f"NVRTC is missing: {error}", INSTALL) from error
        self._nvrtc: Any = nvrtc
        try:
            major, minor = self._call(nvrtc.nvrtcVersion)
        except RuntimeError as error:  # its library is looked for with the first call
            raise KernelError(f"NVRTC is missing: {error}", INSTALL) from error
        self.version = f"{major}.{minor}"
        if capability not in self._call(nvrtc.nvrtcGetSupportedArchs):
            raise KernelError(f"NVRTC {self.version} does not compile for compute capability {capability / 10:.1f}",
                              "install a newer nvidia-cuda-nvrtc, and the cuda-bindings of its release")
        # Releases of one version are told apart by what they write above a program's PTX, of which this one is nothing.
        self._release = self._made("nothing", "nothing", {"nothing": ""}, f"compute_{capability}", "PTX")

    def compile(self, unit: Unit) -> bytes:
        """The unit's machine code. Raises KernelError."""
        words = WORDS_OF_CUDA.read_text()
        name = f"{unit.name}-{digest(unit, words, self._release.decode(), str(self.capability), *OPTIONS)}"
        found = None if self.kept is None else self.kept.read(name)
        if found is not None:
            return found
        began = time.monotonic()
        defines = [f"--define-macro={key}={value}" for key, value in unit.defines]
        texts = {**sources(), WORDS: words}
        image = self._made(unit.name, unit.source, texts, f"sm_{self.capability}", "CUBIN", *defines)
        log.info("kernels for %s were compiled for compute capability %.1f in %.1f s", unit.name,
                 self.capability / 10, time.monotonic() - began)
        if self.kept is not None:
            self.kept.write(name, image)
        return image

    def _made(self, name: str, source: str, texts: dict[str, str], target: str, form: str, *more: str) -> bytes:
        """One of `texts` compiled, the others are what it may include; `form` is PTX or CUBIN."""
        rtc = self._nvrtc
        headers = [text for text in texts if text.endswith(".h")]
        program = self._call(rtc.nvrtcCreateProgram, texts[source].encode(), source.encode(), len(headers),
                             [texts[header].encode() for header in headers], [header.encode() for header in headers])
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={target}", *more)]
        try:
            result, *_ = rtc.nvrtcCompileProgram(program, len(options), options)
            if result != rtc.nvrtcResult.NVRTC_SUCCESS:
                said = self._text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise KernelError(f"kernels for {name} do not compile for {target}: {said}", "report this")
            return self._text(program, form)
        finally:
            rtc.nvrtcDestroyProgram(program)

    def _text(self, program: Any, kind: str) -> bytes:
        """What NVRTC writes into memory of ours, of the size that it says."""
        memory = bytearray(self._call(getattr(self._nvrtc, f"nvrtcGet{kind}Size"), program))
        self._call(getattr(self._nvrtc, f"nvrtcGet{kind}"), program, memory)
        return bytes(memory)

    def _call(self, function: Any, *arguments: Any) -> Any:
        result, *found = function(*arguments)
        if result != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelError(f"{function.__name__}: {result}", "report this")
        return found[0] if len(found) == 1 else tuple(found)
