// SPDX-License-Identifier: GPL-2.0
/*
 * What may the function reach, and who keeps it there?
 *
 * Every mapping is an entry here and holds what it maps: pinned pages, a peer, a dma-buf. Entries go when their owner
 * asks and the function is quiet, or all together after it was stopped. If it cannot be stopped they stay for good.
 */
#include <linux/atomic.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

static atomic_t leaked = ATOMIC_INIT(0);

bool nvs_is_translated(struct nvs_function *fn)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&fn->pdev->dev);

	return domain && domain->type != IOMMU_DOMAIN_IDENTITY;
}

int nvs_get_caps(struct nvs_function *fn, void __user *argument)
{
	struct nvstream_caps caps = {
		.abi = NVSTREAM_ABI,
		.flags = nvs_is_translated(fn) ? NVSTREAM_TRANSLATED : 0,
		.bar_bytes = pci_resource_len(fn->pdev, REGISTER_BAR),
		.pinned_bytes = fn->pinned_bytes,
		.mapped_bytes = fn->mapped_bytes,
		.mappings = fn->mappings,
		.leaked = atomic_read(&leaked),
	};

	return copy_to_user(argument, &caps, sizeof(caps)) ? -EFAULT : 0;
}

struct nvs_mapping *nvs_new(enum nvs_kind kind, u64 bytes)
{
	struct nvs_mapping *m = kzalloc(sizeof(*m), GFP_KERNEL_ACCOUNT);

	if (m) {
		m->kind = kind;
		m->bytes = bytes;
		m->page_count = bytes >> PAGE_SHIFT;
	}
	return m;
}

void nvs_free_mapping(struct nvs_mapping *m)
{
	kvfree(m->bus);
	kfree(m);
}

u32 nvs_enter(struct nvs_function *fn, struct nvs_mapping *m)
{
	/* A handle of 0 is never given: a caller that forgot to fill its field hits nothing. */
	m->handle = ++fn->next_handle;
	list_add_tail(&m->link, &fn->ledger);
	*(m->kind == NVS_PIN ? &fn->pinned_bytes : &fn->mapped_bytes) += m->bytes;
	fn->mappings++;
	return m->handle;
}

/* Whole pages only, and neither fewer nor more than the mapping has: an exporter may hand out anything. */
int nvs_fill_bus(struct nvs_mapping *m, struct sg_table *table)
{
	unsigned long filled = 0, pages;
	struct scatterlist *sg;
	dma_addr_t address;
	unsigned int i;

	m->bus = kvcalloc(m->page_count, sizeof(*m->bus), GFP_KERNEL_ACCOUNT);
	if (!m->bus)
		return -ENOMEM;
	for_each_sgtable_dma_sg(table, sg, i) {
		address = sg_dma_address(sg);
		pages = sg_dma_len(sg) >> PAGE_SHIFT;
		if (!PAGE_ALIGNED(address | sg_dma_len(sg)) || pages > m->page_count - filled)
			return -EINVAL;
		for (; pages; pages--, address += PAGE_SIZE)
			m->bus[filled++] = address;
	}
	return filled == m->page_count ? 0 : -EINVAL;
}

static struct nvs_mapping *nvs_find(struct nvs_function *fn, u32 handle)
{
	struct nvs_mapping *m;

	list_for_each_entry(m, &fn->ledger, link)
		if (m->handle == handle)
			return m;
	return NULL;
}

int nvs_get_pages(struct nvs_function *fn, const struct nvstream_pages *pages)
{
	struct nvs_mapping *m = nvs_find(fn, pages->handle);
	__u64 __user *out = u64_to_user_ptr(pages->addresses);
	u64 i, address;

	if (!m)
		return -ENOENT;
	if (pages->first > m->page_count || pages->count > m->page_count - pages->first)
		return -EINVAL;
	for (i = 0; i < pages->count; i++) {
		address = m->bus ? m->bus[pages->first + i] : m->first + ((pages->first + i) << PAGE_SHIFT);
		if (put_user(address, out + i))
			return -EFAULT;
	}
	return 0;
}

static void nvs_drop(struct nvs_function *fn, struct nvs_mapping *m)
{
	list_del(&m->link);
	*(m->kind == NVS_PIN ? &fn->pinned_bytes : &fn->mapped_bytes) -= m->bytes;
	fn->mappings--;
	if (m->kind == NVS_PIN)
		nvs_drop_pin(fn, m);
	else if (m->kind == NVS_BAR)
		nvs_drop_bar(fn, m);
	else
		nvs_drop_dmabuf(m);
	nvs_free_mapping(m);
}

int nvs_unmap(struct nvs_function *fn, u32 handle)
{
	struct nvs_mapping *m = nvs_find(fn, handle);

	if (!m)
		return -ENOENT;
	if (!nvs_is_quiet(fn))
		return -EBUSY;
	nvs_drop(fn, m);
	return 0;
}

/* Only after the function was stopped. */
void nvs_unmap_all(struct nvs_function *fn)
{
	struct nvs_mapping *m, *next;

	list_for_each_entry_safe(m, next, &fn->ledger, link)
		nvs_drop(fn, m);
}

/* The function may still write: its memory must never be anybody else's. */
void nvs_leak_all(struct nvs_function *fn)
{
	if (!fn->mappings)
		return;
	dev_crit(&fn->pdev->dev,
		 "the function cannot be stopped: %u mappings, %llu bytes of memory and %llu of peers, stay until the machine restarts\n",
		 fn->mappings, fn->pinned_bytes, fn->mapped_bytes);
	atomic_add(fn->mappings, &leaked);
	/*
	 * Nothing frees an entry that is in no list. What entries refer to stays with them: the device, to which
	 * dma-bufs are attached, and this module, which their exporters may call and whose counter is still asked for.
	 */
	INIT_LIST_HEAD(&fn->ledger);
	pci_dev_get(fn->pdev);
	__module_get(THIS_MODULE);
	fn->mappings = 0;
	fn->pinned_bytes = 0;
	fn->mapped_bytes = 0;
}
