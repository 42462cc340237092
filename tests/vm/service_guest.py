"""How does a machine with systemd and our package boot, and what came of each step that it was asked to take?

Like lab.Guest, but over an image of its own (scripts/build_image.py): its changes are forgotten when it is off.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vm.lab import CHEAPER, LAB, PROCESSOR, ROOT, Hardware, Result, kernel, run_to_end, text_of

SERVICE = LAB / "service"
IMAGE, INITRD, BEFORE = SERVICE / "image.ext4", SERVICE / "initrd", SERVICE / "before"
# A step that takes longer hangs.
STEP_SECONDS = 120
TIMED_OUT = 124


@dataclass(frozen=True, slots=True)
class StepEnd:
    """How a step ended: its exit status, 124 when it took too long, and what it wrote."""

    status: int
    output: str


@dataclass(frozen=True, slots=True)
class Course:
    """How all steps ended, those that were taken, and how the guest did."""

    steps: Mapping[str, StepEnd]
    result: Result

    def step(self, name: str) -> StepEnd:
        """One that was taken; otherwise fails the test with what the guest said."""
        assert name in self.steps, f"the guest never came to {name}:\n{self.result}"
        return self.steps[name]

    def output(self, name: str) -> str:
        """What a step wrote that went well; otherwise fails the test."""
        step = self.step(name)
        assert step.status == 0, f"{name} ended with {step.status}:\n{step.output}\n{self.result.output[-20000:]}"
        return step.output


def missing() -> str:
    """Why there is no image of this tree; empty when there is one."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts/build_image.py"), "check"], capture_output=True,
                          text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def boot(folder: Path, hardware: Hardware, steps: Mapping[str, str], seconds: float) -> Course:
    """Boots, takes the steps (bash, as root) one after the other whatever becomes of them, powers off.

    The guest sees `folder` as /lab. `seconds` for all of it.
    """
    share, results = folder / "share", folder / "steps"
    for path in (share, results):
        path.mkdir()
    for name, script in steps.items():
        (share / f"{name}.sh").write_text(f"set -eu -o pipefail\n{script}\n")
    (share / "job").write_text(_job(list(steps)))
    words = run_to_end(_command(folder, hardware), seconds)
    taken = {name: StepEnd(int(text_of(results / f"{name}.status")), text_of(results / name)) for name in steps
             if (results / f"{name}.status").exists()}
    status = text_of(share / "status").strip()
    return Course(taken, Result(int(status) if status else None, text_of(share / "output"), text_of(share / "dmesg"),
                                words))


def _job(names: list[str]) -> str:
    """Each step under a deadline of its own; the machine's journal at the end."""
    return (f"cd /\nfor name in {shlex.join(names)}; do\n"
            f"timeout -k 5 {STEP_SECONDS} bash /lab/share/$name.sh > /lab/steps/$name 2>&1\n"
            f"echo $? > /lab/steps/$name.status\necho \"$name: $(date +%T)\" >> /lab/share/times\n"
            f"done\njournalctl --boot --no-pager > /lab/share/output\ndmesg > /lab/share/dmesg\n"
            f"echo 0 > /lab/share/status\nsync\n")


def _command(folder: Path, hardware: Hardware) -> list[str]:
    """QEMU without KVM, which need not be able to boot a kernel (see lab.py)."""
    share = f"local,id=lab,path={folder},security_model=none"
    return ["qemu-system-x86_64", *hardware.qemu(), "-accel", "tcg", *PROCESSOR, "-smp", "2",
            "-m", hardware.memory, "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
            "-kernel", str(kernel()), "-initrd", str(INITRD), "-append",
            " ".join(["console=ttyS0 intel_iommu=on panic=-1 quiet", *CHEAPER]),
            "-drive", f"if=none,id=root,file={IMAGE},format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=root",
            "-fsdev", share, "-device", "virtio-9p-pci,fsdev=lab,mount_tag=lab"]


