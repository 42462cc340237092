/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/* What can a test ask of /dev/labbar? A dma-buf of a part of the BAR; the call returns its descriptor. */
#ifndef _LABBAR_H
#define _LABBAR_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct labbar_export {
	__u64 offset;
	__u64 bytes;
	__u64 size;	/* that the dma-buf claims to have: as `bytes`, but for a test of a lying exporter */
};

#define LABBAR_EXPORT	_IOW(0xB8, 0x00, struct labbar_export)

#endif
