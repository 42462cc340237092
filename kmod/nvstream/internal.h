/* SPDX-License-Identifier: GPL-2.0 */
/* Which parts has the module, and what do they share? */
#ifndef _NVSTREAM_INTERNAL_H
#define _NVSTREAM_INTERNAL_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/scatterlist.h>

#include "nvstream.h"

#define REGISTER_BAR 0

/* Of one mapping: 512 GiB. An array of their addresses is one that the kernel's allocator takes. */
#define MOST_PAGES BIT(27)

struct dma_buf;
struct dma_buf_attachment;

/* A bound function. Lives until it is unbound and its file is closed. */
struct nvs_function {
	struct kref kref;
	struct pci_dev *pdev;
	struct pci_saved_state *saved;	/* its configuration as it was bound, bus mastering off */
	void __iomem *registers;
	struct miscdevice misc;
	char name[40];
	struct mutex lock;	/* of all below, and of the ledger; held while memory of the caller is touched */
	struct address_space *mapping;	/* of the open file; NULL: not open */
	struct list_head ledger;	/* struct nvs_mapping: what the function may reach */
	u32 next_handle;
	u64 pinned_bytes;
	u64 mapped_bytes;
	u32 mappings;
	struct mutex gone_lock;	/* of `gone`, inside of all others: mmap comes with the caller's memory locked */
	bool gone;
};

enum nvs_kind { NVS_PIN, NVS_BAR, NVS_DMABUF };

/* What the function may reach, and what holds it there. */
struct nvs_mapping {
	struct list_head link;
	enum nvs_kind kind;
	u32 handle;
	u64 bytes;
	unsigned long page_count;
	dma_addr_t *bus;	/* of each page; NULL: consecutive from `first` on */
	dma_addr_t first;
	/* NVS_PIN */
	struct mm_struct *mm;
	struct page **pages;
	struct sg_table table;
	/* NVS_BAR */
	struct pci_dev *peer;
	/* NVS_DMABUF */
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attachment;
	struct sg_table *exported;
};

/* quiesce.c */
int nvs_quiesce(struct nvs_function *fn, bool device_locked);
bool nvs_is_quiet(struct nvs_function *fn);

/* ledger.c */
bool nvs_is_translated(struct nvs_function *fn);
int nvs_get_caps(struct nvs_function *fn, void __user *argument);
struct nvs_mapping *nvs_new(enum nvs_kind kind, u64 bytes);
void nvs_free_mapping(struct nvs_mapping *m);
int nvs_fill_bus(struct nvs_mapping *m, struct sg_table *table);
u32 nvs_enter(struct nvs_function *fn, struct nvs_mapping *m);
int nvs_get_pages(struct nvs_function *fn, const struct nvstream_pages *pages);
int nvs_unmap(struct nvs_function *fn, u32 handle);
void nvs_unmap_all(struct nvs_function *fn);
void nvs_leak_all(struct nvs_function *fn);

/* memory.c */
int nvs_pin(struct nvs_function *fn, struct nvstream_pin *pin);
void nvs_drop_pin(struct nvs_function *fn, struct nvs_mapping *m);

/* peers.c */
int nvs_map_bar(struct nvs_function *fn, struct nvstream_map_bar *map);
void nvs_drop_bar(struct nvs_function *fn, struct nvs_mapping *m);

/* exported.c */
int nvs_map_dmabuf(struct nvs_function *fn, struct nvstream_map_dmabuf *map);
void nvs_drop_dmabuf(struct nvs_mapping *m);

#endif
