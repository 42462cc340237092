"""How does a guest without a card show what the service would make of one? A driver's stand-in, and a probe in it."""

from __future__ import annotations

from vm.lab import LAB

# Stands in for NVIDIA's driver (kmod/lab).
MODULE = LAB / "lab/labcard.ko"
# As NVIDIA's own program, of its uses those that CUDA needs: nvidia-modprobe(1).
NVIDIA_MODPROBE = """#!/bin/sh
node() { mknod -m 666 /dev/$1 c $2 $3; }
case "$*" in
"-c 0") node nvidia0 195 0 ;;
"-c 255") node nvidiactl 195 255 ;;
"-u -c 0") node nvidia-uvm $(awk '$2 == "nvidia-uvm" { print $1 }' /proc/devices) 0 ;;
*) exit 1 ;;
esac
"""
# Under the service's own rules, before it starts: /dev/vda, the machine's disk, is nobody's to open there.
PROBE = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
with open("/run/nvstreamd/probed", "w") as found:
    for node in ("nvidia0", "nvidiactl", "nvidia-uvm", "vda"):
        try:
            os.close(os.open(f"/dev/{node}", os.O_RDWR))
            print(node, "opened", file=found)
        except OSError as error:
            print(node, errno.errorcode[error.errno], file=found)
    # set_mempolicy(MPOL_DEFAULT), as numbers: libc has no function for it.
    print("policy", libc.syscall(238, 0, None, 0), file=found)
    os.sched_setaffinity(0, os.sched_getaffinity(0))
"""
STEP = f"""insmod /lab/{MODULE.name}
cat > /usr/bin/nvidia-modprobe <<'END'
{NVIDIA_MODPROBE}END
chmod 755 /usr/bin/nvidia-modprobe
cat > /run/probe.py <<'END'
{PROBE}END
mkdir /run/systemd/system/nvstreamd.service.d
cat > /run/systemd/system/nvstreamd.service.d/card.conf <<'END'
[Service]
ExecStartPre=/usr/bin/python3 /run/probe.py
END
systemctl daemon-reload; systemctl start nvstreamd.service; cat /run/nvstreamd/probed
rm -r /run/systemd/system/nvstreamd.service.d /usr/bin/nvidia-modprobe; systemctl daemon-reload
systemctl stop nvstreamd.socket nvstreamd.service; rmmod {MODULE.stem}
"""
