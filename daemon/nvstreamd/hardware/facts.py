"""What is known of a machine? Frozen facts; None is what could not be found out."""

from __future__ import annotations

from dataclasses import dataclass

from nvdma.pci.address import PciAddress

NVME_CLASS = 0x010802
BRIDGE_CLASS = 0x06
DISPLAY_CLASS = 0x03


@dataclass(frozen=True, slots=True)
class Link:
    """A PCIe link: transfers a second and lanes, now and at most, in sysfs' words ("8.0 GT/s PCIe", "4")."""

    speed: str
    width: str
    max_speed: str
    max_width: str


@dataclass(frozen=True, slots=True)
class PciFunction:
    """A function. `bars` are sizes in bytes by number; `power` is power/control: "auto" or "on"."""

    address: PciAddress
    vendor: int
    device: int
    class_code: int
    driver: str | None
    driver_override: str | None
    iommu_group: str | None
    numa_node: int | None
    link: Link | None
    bars: tuple[int, ...]
    power: str | None

    @property
    def is_bridge(self) -> bool:
        """True when it is a PCI bridge: those may share a group with anything."""
        return self.class_code >> 16 == BRIDGE_CLASS


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature that blkid(8) finds on a device: a file system, a partition table, a member of an array."""

    kind: str
    use: str


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A disk or a partition of one. `holders` are what the kernel has built on it (md, LVM, dm-crypt).

    `mounts` are where it, or what is built on it, is mounted; `is_swap` likewise. `held`: the kernel has it in use, for
    whatever reason. `signatures` are the whole disk's, None when nobody could look; `nsid` numbers its namespace.
    """

    name: str
    nbytes: int
    mounts: tuple[str, ...]
    holders: tuple[str, ...]
    is_swap: bool
    held: bool | None
    partitions: tuple[BlockDevice, ...] = ()
    signatures: tuple[Signature, ...] | None = ()
    block_bytes: int | None = None
    nsid: int | None = None

    @property
    def parts(self) -> tuple[BlockDevice, ...]:
        """The device and its partitions."""
        return (self, *self.partitions)


@dataclass(frozen=True, slots=True)
class NvmeController:
    """An NVMe controller. What only the kernel's driver knows is None while another driver holds the function.

    `namespaces` are the disks that the kernel makes of it; `shared`: one of them has paths through other controllers.
    """

    function: PciFunction
    name: str | None
    model: str | None
    serial: str | None
    firmware: str | None
    namespaces: tuple[BlockDevice, ...]
    shared: bool

    @property
    def address(self) -> PciAddress:
        """Its function's."""
        return self.function.address


@dataclass(frozen=True, slots=True)
class Machine:
    """All of it, at one moment. `lockdown` is the kernel's mode, "none" without one; `modules` those of interest."""

    functions: tuple[PciFunction, ...]
    controllers: tuple[NvmeController, ...]
    has_iommu: bool
    kernel: str
    boot_id: str
    lockdown: str
    secure_boot: bool | None
    nvidia: str | None
    modules: tuple[str, ...] = ()

    @property
    def gpus(self) -> tuple[PciFunction, ...]:
        """Display controllers."""
        return tuple(found for found in self.functions if found.class_code >> 16 == DISPLAY_CLASS)

    def group(self, function: PciFunction) -> tuple[PciFunction, ...]:
        """All functions in the IOMMU group of one, itself among them; only itself when it is in none."""
        if function.iommu_group is None:
            return (function,)
        return tuple(found for found in self.functions if found.iommu_group == function.iommu_group)
