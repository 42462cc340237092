/* SPDX-License-Identifier: GPL-2.0 */
/* Which parts has the module, and what do they share? */
#ifndef _NVSTREAM_INTERNAL_H
#define _NVSTREAM_INTERNAL_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#include "nvstream.h"

/* A bound function. Lives until it is unbound and its file is closed. */
struct nvs_function {
	struct kref kref;
	struct pci_dev *pdev;
	void __iomem *registers;
	struct miscdevice misc;
	char name[40];
	struct mutex lock;	/* of all below, and of the ledger */
	struct address_space *mapping;	/* of the open file; NULL: not open */
	bool gone;
	struct list_head ledger;	/* struct nvs_mapping: what the function may reach */
	u32 next_handle;
	u64 pinned_bytes;
	u64 mapped_bytes;
	u32 mappings;
};

/* quiesce.c */
int nvs_quiesce(struct nvs_function *fn, bool device_locked);
bool nvs_is_quiet(struct nvs_function *fn);

/* ledger.c */
int nvs_pin(struct nvs_function *fn, struct nvstream_pin *pin);
int nvs_map_bar(struct nvs_function *fn, struct nvstream_map_bar *map);
int nvs_map_dmabuf(struct nvs_function *fn, struct nvstream_map_dmabuf *map);
int nvs_get_pages(struct nvs_function *fn, const struct nvstream_pages *pages);
int nvs_unmap(struct nvs_function *fn, u32 handle);
void nvs_unmap_all(struct nvs_function *fn);
void nvs_leak_all(struct nvs_function *fn);
u32 nvs_leaked(void);

/* peers.c */
struct pci_dev *nvs_get_peer(const struct nvstream_map_bar *map, phys_addr_t *address);

#endif
