/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What can a process ask of /dev/nvstream/ADDRESS?
 *
 * One open file drives one NVMe function. Structures have fixed sizes and no holes; reserved fields are zero, and
 * refused when they are not. The number of the interface grows with every change that an old caller would notice.
 */
#ifndef _UAPI_NVSTREAM_H
#define _UAPI_NVSTREAM_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define NVSTREAM_ABI 1

/* The IOMMU translates: addresses are good for this function alone. */
#define NVSTREAM_TRANSLATED	0x1

struct nvstream_caps {
	__u32 abi;
	__u32 flags;
	__u64 bar_bytes;	/* of BAR 0, to be mapped at offset 0 */
	__u64 pinned_bytes;	/* that this file holds in memory */
	__u64 mapped_bytes;	/* that this file holds of peers */
	__u32 mappings;
	__u32 leaked;		/* mappings of functions that could not be stopped, since the module was loaded */
	__u64 reserved[3];
};

/* Memory of the caller; stays pinned until unmapped or until the function was stopped, even when the caller dies. */
struct nvstream_pin {
	__u64 address;		/* page-aligned */
	__u64 bytes;		/* whole pages */
	__u32 handle;		/* out */
	__u32 reserved;
};

/* A window of a peer's BAR; peers are display controllers, or those named in the module's parameter `peers`. */
struct nvstream_map_bar {
	__u32 domain;
	__u8 bus;
	__u8 devfn;
	__u8 bar;
	__u8 reserved;
	__u64 offset;		/* page-aligned */
	__u64 bytes;		/* whole pages */
	__u32 handle;		/* out */
	__u32 reserved2;
};

/* Memory that another driver exports; it is pinned as long as it is mapped. */
struct nvstream_map_dmabuf {
	__s32 fd;
	__u32 handle;		/* out */
	__u64 bytes;		/* out */
};

/* The function's address of each page of 4096 bytes of a mapping. */
struct nvstream_pages {
	__u64 addresses;	/* of an array of `count` __u64 */
	__u64 first;		/* number of the first page */
	__u32 count;
	__u32 handle;
};

/* Allowed only after NVSTREAM_QUIESCE, until the function is enabled again by its registers. */
struct nvstream_unmap {
	__u32 handle;
	__u32 reserved;
};

#define NVSTREAM_GET_CAPS	_IOR(0xB7, 0x00, struct nvstream_caps)
#define NVSTREAM_PIN		_IOWR(0xB7, 0x01, struct nvstream_pin)
#define NVSTREAM_MAP_BAR	_IOWR(0xB7, 0x02, struct nvstream_map_bar)
#define NVSTREAM_MAP_DMABUF	_IOWR(0xB7, 0x03, struct nvstream_map_dmabuf)
#define NVSTREAM_GET_PAGES	_IOW(0xB7, 0x04, struct nvstream_pages)
#define NVSTREAM_UNMAP		_IOW(0xB7, 0x05, struct nvstream_unmap)
#define NVSTREAM_SET_MASTER	_IO(0xB7, 0x06)
#define NVSTREAM_QUIESCE	_IO(0xB7, 0x07)

#endif
