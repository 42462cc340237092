"""By which descriptors is a process granted a function? The daemon opens them, an engine drives it by them."""

from __future__ import annotations

# A container and a device of VFIO's, an iommufd and a device of VFIO's, a file of our module's.
BY_VFIO, BY_IOMMUFD, BY_MODULE = "vfio", "iommufd", "nvstream"
COUNTS = {BY_VFIO: 2, BY_IOMMUFD: 2, BY_MODULE: 1}


def descriptor_count(grant: str) -> int:
    """How many descriptors a function takes that is opened so. Raises ValueError for a grant that is none."""
    if grant not in COUNTS:
        raise ValueError(f"{grant!r} is no way to have a function: {', '.join(COUNTS)}")
    return COUNTS[grant]
