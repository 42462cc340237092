"""Has the kernel a new disk of an NVMe drive? It says so itself, in uevents, which libudev reads.

The kernel's own events, not those that udevd sends once its rules have run: a service that sees no network is in a
network namespace of its own, where the kernel's arrive and udevd's do not. The node in /dev is there before the event.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

from nvstreamd.errors import HardwareError


class Uevents(Protocol):
    """The kernel's events, as it tells them while it runs."""

    def fileno(self) -> int:
        """A descriptor that is readable when it has said something."""

    def disk_came(self) -> bool:
        """Takes all that it has said. True when a disk of an NVMe drive came, or may have."""


class NetlinkUevents:
    """The kernel's uevents of block devices, heard from when this is made until it is dropped.

    Raises HardwareError where they cannot be heard.
    """

    def __init__(self) -> None:
        try:
            # Only a daemon with drives needs it: others run without libudev.
            import pyudev

            self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
            self._monitor.filter_by("block")
            self._monitor.start()
        except (ImportError, OSError) as error:
            raise HardwareError(f"uevents cannot be heard: {error}",
                                "install libudev1; a service needs RestrictAddressFamilies=AF_NETLINK") from error

    def fileno(self) -> int:
        """The netlink socket's descriptor, readable when there is an event."""
        return int(self._monitor.fileno())

    def disk_came(self) -> bool:
        """Takes all events that wait. True when a disk of an NVMe drive was added, or events were lost."""
        came = False
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                came |= (device.action, device.device_type) == ("add", "disk") and device.sys_name.startswith("nvme")
        except OSError:
            # More was said than the socket could keep (netlink(7), ENOBUFS): who knows what.
            self._clear_error()
            return True
        return came

    def _clear_error(self) -> None:
        with socket.socket(fileno=os.dup(self.fileno())) as same:
            same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
