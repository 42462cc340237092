"""Which calls do iommufd and its devices understand? (linux/iommufd.h, linux/vfio.h) Imports as in vfio_calls."""

from __future__ import annotations

import struct

from nvdma.pci.vfio_calls import BASE as VFIO_BASE

# _IO(';', 0x80 + n): ioctls without a size in their number; each structure begins with its own.
BASE = ord(";") << 8 | 0x80
IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, OPTION = BASE + 1, BASE + 5, BASE + 6, BASE + 7
# Of a device that was opened as a character device.
DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT = VFIO_BASE + 18, VFIO_BASE + 19

ALLOCATION = struct.Struct("=III")  # size, flags, out_ioas_id
MAP = struct.Struct("=IIIIQQQ")  # size, flags, ioas_id, reserved, user_va, length, iova
MAP_WRITEABLE, MAP_READABLE = 1 << 1, 1 << 2
UNMAP = struct.Struct("=IIQQ")  # size, ioas_id, iova, length
OPTION_VALUE = struct.Struct("=IIHHIQ")  # size, option_id, op, reserved, object_id, val64
RLIMIT_MODE, SET, PER_PROCESS = 0, 0, 1
BIND = struct.Struct("=IIiI")  # argsz, flags, iommufd, out_devid
ATTACHMENT = struct.Struct("=III")  # argsz, flags, pt_id
