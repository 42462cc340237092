"""How is a guest booted, with which hardware, and how do its results come back?

virtme-ng boots a stock Debian kernel over this machine's own root file system, read-only: the checkout and its
environment are simply there. Nothing of this machine's hardware is: QEMU emulates drives, IOMMU and BARs, without KVM.
A folder shared over 9p carries the job there and its output, exit status and kernel log back.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "build/lab"
# What every process in a guest reads at its start: mounted once more there, with a cache, for each file looked up
# through virtme-ng's root is some trips to the host (Documentation/filesystems/9p.rst, cache=loose).
CACHED = tuple(dict.fromkeys((ROOT, Path(sys.base_prefix))))
MOUNT = "mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose"
# A kernel with iommufd, as scripts/lab_kernel.py leaves it.
IOMMUFD_KERNEL = LAB / "iommufd/bzImage"
MIB = 1 << 20
SECTOR, PAGE = 512, 4096
# What QEMU says when a device reaches memory that its IOMMU does not translate, and what the guest's kernel says.
FAULTS = re.compile(r"vtd_|DMAR:.*fault", re.IGNORECASE)
# What a processor without KVM pays dearly for and no test is about: a clock behind a device's registers, retpolines,
# memory cleared before each use (a sixth of a guest's time), waits of milliseconds at each change of a driver.
CHEAPER = ("tsc=reliable", "mitigations=off", "init_on_alloc=0", "rcupdate.rcu_expedited=1")
# Of a guest's time; the rest is for its boot and for what it says of a job that does not end.
PART_FOR_THE_JOB = 0.8
# Without the features that say that copying and clearing byte by byte is fast: emulated it takes five times as long.
PROCESSOR = ("-cpu", "max,-erms,-fsrm")


@dataclass(frozen=True, slots=True)
class Drive:
    """An emulated NVMe controller with one namespace over `image`; `options` are more of QEMU's for it.

    Its page at byte `unreadable` answers every read with an error of the medium. With `latency` it has the image's size
    alone: each command takes so many seconds, however many are under way, and no byte is moved.
    """

    serial: str
    image: Path
    slot: int
    options: str = ""
    unreadable: int | None = None
    latency: float | None = None

    def qemu(self) -> list[str]:
        """QEMU's options."""
        name, more = f"drive{self.slot:x}", f",{self.options}" if self.options else ""
        file = f"file={self.image},file.locking=off"
        if self.unreadable is not None:
            file = (f"file.driver=blkdebug,file.config={self._faults(self.unreadable)},file.image.driver=file,"
                    f"file.image.filename={self.image},file.image.locking=off")
        if self.latency is not None:
            file = (f"file.driver=null-aio,file.size={self.image.stat().st_size},"
                    f"file.latency-ns={round(self.latency * 1e9)}")
        return ["-drive", f"if=none,id={name},{file},format=raw",
                "-device", f"nvme,id=nvme{self.slot:x},serial={self.serial},drive={name},addr={self.slot:x}.0{more}"]

    def _faults(self, offset: int) -> Path:
        """What blkdebug injects (QEMU, docs/devel/blkdebug.rst): errno 5, EIO, for every sector of the page."""
        path = self.image.with_suffix(".faults")
        rules = (f'[inject-error]\nevent = "read_aio"\nerrno = "5"\nonce = "off"\nsector = "{sector}"\n'
                 for sector in range(offset // SECTOR, (offset + PAGE) // SECTOR))
        path.write_text("\n".join(rules))
        return path


@dataclass(frozen=True, slots=True)
class Hardware:
    """The guest's. `bar` is the memory behind the BAR that stands in for a GPU's: the host sees what lands there."""

    drives: Sequence[Drive] = ()
    bar: Path | None = None
    iommu: bool = True
    memory: str = "2G"

    def qemu(self) -> list[str]:
        """QEMU's options."""
        options = ["-machine", "q35"]
        if self.iommu:
            options += ["-device", "intel-iommu,intremap=on,caching-mode=off"]
        for drive in self.drives:
            options += drive.qemu()
        if self.bar is not None:
            size = self.bar.stat().st_size
            options += ["-object", f"memory-backend-file,id=bar,size={size},mem-path={self.bar},share=on",
                        "-device", "ivshmem-plain,memdev=bar,addr=1e.0"]
        return options


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended: its exit status (None: the guest was gone before), output, kernel log, and what QEMU said."""

    status: int | None
    output: str
    kernel_log: str
    qemu: str

    @property
    def faults(self) -> list[str]:
        """Lines about memory that a device reached and may not."""
        return [line for line in (self.kernel_log + self.qemu).splitlines() if FAULTS.search(line)]

    def __str__(self) -> str:
        kernel = "" if self.status == 0 else f"--- kernel\n{self.kernel_log[-16000:]}\n"
        return f"status {self.status}\n{self.output}\n{kernel}--- QEMU\n{self.qemu[-4000:]}"


@dataclass(slots=True)
class Guest:
    """A guest of this hardware; each `run` boots it anew. The guest sees `folder` under the same name, writable.

    `own_kernel` is one that has everything built in; without it Debian's is booted, with its modules.
    """

    folder: Path
    hardware: Hardware = field(default_factory=Hardware)
    own_kernel: Path | None = None

    def run(self, job: str, seconds: float) -> Result:
        """Boots, runs a shell script as root, powers off; `seconds` for all of it."""
        share = self.folder / "share"
        share.mkdir(parents=True, exist_ok=True)
        for name in ("status", "output", "dmesg"):
            (share / name).unlink(missing_ok=True)
        (share / "job").write_text(_wrapped(job, share, int(PART_FOR_THE_JOB * seconds)))
        image, modules = (self.own_kernel, "none") if self.own_kernel else (kernel(), "auto")
        command = [
            sys.executable, "-m", "virtme.commands.run", "--kimg", str(image), "--mods", modules, "--disable-kvm",
            "--force-9p", "--disable-microvm", "--cpus", "2", "--memory", self.hardware.memory, "--name", "lab",
            "--rwdir", str(self.folder), "--script-sh", f"bash {shlex.quote(str(share / 'job'))}",
        ]
        for option in (*CHEAPER, *(["intel_iommu=on"] if self.hardware.iommu else [])):
            command += ["--kopt", option]
        command += ["--qemu-opts", *PROCESSOR, *self.hardware.qemu(), *_shares()]
        words = run_to_end(command, seconds)
        status = text_of(share / "status").strip()
        return Result(int(status) if status else None, text_of(share / "output"), text_of(share / "dmesg"), words)


def _shares() -> list[str]:
    """QEMU's options for what is cached."""
    return [word for number, path in enumerate(CACHED) for word in (
        "-fsdev", f"local,id=cached{number},path={path},security_model=none,readonly=on,multidevs=remap",
        "-device", f"virtio-9p-pci,fsdev=cached{number},mount_tag=cached{number}")]


def _wrapped(job: str, share: Path, seconds: int) -> str:
    """The job, its traces left in the shared folder; after `seconds` also where each of its processes is."""
    mounts = "".join(f"{MOUNT} cached{number} {shlex.quote(str(path))}\n" for number, path in enumerate(CACHED))
    return (mounts +f"export HOME=/root PYTHONDONTWRITEBYTECODE=1 NVSTREAMD_GUEST=1 LAB={share.parent}\n"
            f"export TMPDIR=/run/lab && mkdir -p $TMPDIR && cd {ROOT}\n"
            "mkfifo $TMPDIR/end && exec 3<>$TMPDIR/end\n"
            f"{{ ( {job}\n) >> {share}/output 2>&1; echo $? >&3; }} &\n"
            f"read -t {seconds} -u 3 status || {{\n"
            # Python's stacks (pytest has its faulthandler on), then those of processes that wait within the kernel.
            f"echo 'no end after {seconds} s' >> {share}/output; pkill -ABRT python; read -t 5 -u 3 status\n"
            f"for what in l w; do echo $what > /proc/sysrq-trigger; done; status=124; }}\n"
            f"dmesg > {share}/dmesg\necho $status > {share}/status\nsync\n")


def run_to_end(command: Sequence[str], seconds: float) -> str:
    """What virtme-ng or QEMU says; neither is left running."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", start_new_session=True) as process:
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            threads = _threads(process.pid)
            os.killpg(process.pid, signal.SIGKILL)
            return f"{process.communicate()[0]}\nno end after {seconds:g} s; its threads then:\n{threads}"


def _threads(session: int) -> str:
    """What each thread of a session's processes does and has done: proc(5). One that waits names where."""
    lines = []
    for task in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*")):
        name, _, rest = text_of(task / "stat").rpartition(")")
        fields = rest.split()
        if fields and int(fields[3]) == session:
            spent = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            where = text_of(task / "wchan")
            lines.append(f"{name.partition('(')[2]}: {fields[0]}, {spent:.0f} s of a processor, {where}")
    return "\n".join(lines)


def unless_it_hangs(run: Callable[[], Result]) -> Result:
    """What a guest came to. One that came to nothing is warned of, with what QEMU did then, and booted once more.

    It has a deadline of its own, and says what it waits for: where not even that comes QEMU itself stands still, or the
    guest's kernel: seen once, in CI.
    """
    result = run()
    if result.status is None:
        warnings.warn(f"the guest hung as a whole, and is booted once more: {result}", stacklevel=2)
        result = run()
    return result


def text_of(path: Path) -> str:
    """What is in a file, if it is there: a guest, or a process, may be gone."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def kernel() -> Path:
    """The kernel's image, as scripts/setup_lab.py left it."""
    return next((LAB / "root/boot").glob("vmlinuz-*"))


def missing() -> str:
    """Why there can be no guest here; empty when there can."""
    folders = [*os.environ["PATH"].split(":"), "/sbin", "/usr/sbin"]
    for program in ("qemu-system-x86_64", "busybox", "modprobe"):
        if not any((Path(folder) / program).exists() for folder in folders):
            return f"{program} is not installed (make lab-packages)"
    if not list((LAB / "root/boot").glob("vmlinuz-*")):
        return f"there is no kernel in {LAB} (make setup-lab)"
    return ""


def image(path: Path, nbytes: int, *, filled: int = 0) -> Path:
    """A drive, or the memory behind a BAR: `filled` bytes in which a wrong place shows, then nothing."""
    draw = Random(nbytes)
    with path.open("wb") as file:
        for begin in range(0, filled, MIB):
            file.write(draw.randbytes(min(MIB, filled - begin)))
        file.truncate(nbytes)
    return path
