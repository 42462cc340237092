// SPDX-License-Identifier: GPL-2.0
/*
 * What may the function reach, and who keeps it there?
 *
 * Every mapping is an entry here and holds what it maps: pinned pages, a peer, a dma-buf. Entries go when their owner
 * asks and the function is quiet, or all together after it was stopped. If it cannot be stopped they stay for good.
 */
#include <linux/atomic.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "internal.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define dma_buf_map_attachment_unlocked dma_buf_map_attachment
#define dma_buf_unmap_attachment_unlocked dma_buf_unmap_attachment
#endif

#define MOST_PAGES BIT(28)

enum nvs_kind { NVS_PIN, NVS_BAR, NVS_DMABUF };

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

static atomic_t leaked = ATOMIC_INIT(0);

u32 nvs_leaked(void)
{
	return atomic_read(&leaked);
}

static struct nvs_mapping *nvs_new(enum nvs_kind kind, u64 bytes)
{
	struct nvs_mapping *m = kzalloc(sizeof(*m), GFP_KERNEL);

	if (m) {
		m->kind = kind;
		m->bytes = bytes;
		m->page_count = bytes >> PAGE_SHIFT;
	}
	return m;
}

static u32 nvs_enter(struct nvs_function *fn, struct nvs_mapping *m)
{
	/* A handle of 0 is never given: a caller that forgot to fill its field hits nothing. */
	m->handle = ++fn->next_handle;
	list_add_tail(&m->link, &fn->ledger);
	*(m->kind == NVS_PIN ? &fn->pinned_bytes : &fn->mapped_bytes) += m->bytes;
	fn->mappings++;
	return m->handle;
}

static int nvs_fill_bus(struct nvs_mapping *m, struct sg_table *table)
{
	struct sg_dma_page_iter iter;
	unsigned long i = 0;

	m->bus = kvcalloc(m->page_count, sizeof(*m->bus), GFP_KERNEL_ACCOUNT);
	if (!m->bus)
		return -ENOMEM;
	for_each_sgtable_dma_page(table, &iter, 0) {
		if (i == m->page_count)
			break;
		m->bus[i++] = sg_page_iter_dma_address(&iter);
	}
	return i == m->page_count ? 0 : -EIO;
}

static void nvs_unpin_pages(struct nvs_mapping *m, unsigned long count)
{
	unpin_user_pages_dirty_lock(m->pages, count, true);
	kvfree(m->pages);
	account_locked_vm(m->mm, m->page_count, false);
	mmdrop(m->mm);
}

static void nvs_drop_pin(struct nvs_function *fn, struct nvs_mapping *m)
{
	dma_unmap_sgtable(&fn->pdev->dev, &m->table, DMA_BIDIRECTIONAL, 0);
	sg_free_table(&m->table);
	nvs_unpin_pages(m, m->page_count);
}

static int nvs_take_pages(struct nvs_mapping *m, u64 address)
{
	unsigned long done = 0;
	int got, err;

	err = account_locked_vm(current->mm, m->page_count, true);
	if (err)
		return err;
	m->mm = current->mm;
	mmgrab(m->mm);
	err = -ENOMEM;
	m->pages = kvcalloc(m->page_count, sizeof(*m->pages), GFP_KERNEL_ACCOUNT);
	while (m->pages && done < m->page_count) {
		got = pin_user_pages_fast(address + (done << PAGE_SHIFT), min(m->page_count - done, 1UL << 18),
					  FOLL_WRITE | FOLL_LONGTERM, m->pages + done);
		if (got <= 0) {
			err = got ?: -EFAULT;
			break;
		}
		done += got;
	}
	if (m->pages && done == m->page_count)
		return 0;
	nvs_unpin_pages(m, done);
	return err;
}

static int nvs_map_pages(struct nvs_function *fn, struct nvs_mapping *m)
{
	int err;

	err = sg_alloc_table_from_pages(&m->table, m->pages, m->page_count, 0, m->bytes, GFP_KERNEL_ACCOUNT);
	if (err)
		return err;
	err = dma_map_sgtable(&fn->pdev->dev, &m->table, DMA_BIDIRECTIONAL, 0);
	if (err)
		sg_free_table(&m->table);
	return err;
}

int nvs_pin(struct nvs_function *fn, struct nvstream_pin *pin)
{
	struct nvs_mapping *m;
	int err;

	if (pin->reserved || !pin->bytes || !PAGE_ALIGNED(pin->address | pin->bytes) ||
	    pin->bytes >> PAGE_SHIFT > MOST_PAGES || pin->address + pin->bytes < pin->address)
		return -EINVAL;
	m = nvs_new(NVS_PIN, pin->bytes);
	if (!m)
		return -ENOMEM;
	err = nvs_take_pages(m, pin->address);
	if (err)
		goto free;
	err = nvs_map_pages(fn, m);
	if (err)
		goto unpin;
	err = nvs_fill_bus(m, &m->table);
	if (err)
		goto unmap;
	pin->handle = nvs_enter(fn, m);
	return 0;
unmap:
	nvs_drop_pin(fn, m);
	goto free;
unpin:
	nvs_unpin_pages(m, m->page_count);
free:
	kvfree(m->bus);
	kfree(m);
	return err;
}

static void nvs_drop_bar(struct nvs_function *fn, struct nvs_mapping *m)
{
	dma_unmap_resource(&fn->pdev->dev, m->first, m->bytes, DMA_BIDIRECTIONAL, 0);
	pci_dev_put(m->peer);
}

int nvs_map_bar(struct nvs_function *fn, struct nvstream_map_bar *map)
{
	struct nvs_mapping *m;
	phys_addr_t address;

	if (map->reserved || map->reserved2 || !PAGE_ALIGNED(map->offset | map->bytes))
		return -EINVAL;
	m = nvs_new(NVS_BAR, map->bytes);
	if (!m)
		return -ENOMEM;
	m->peer = nvs_get_peer(map, &address);
	if (IS_ERR(m->peer)) {
		int err = PTR_ERR(m->peer);

		kfree(m);
		return err;
	}
	m->first = dma_map_resource(&fn->pdev->dev, address, m->bytes, DMA_BIDIRECTIONAL, 0);
	if (dma_mapping_error(&fn->pdev->dev, m->first)) {
		pci_dev_put(m->peer);
		kfree(m);
		return -EIO;
	}
	map->handle = nvs_enter(fn, m);
	return 0;
}

static void nvs_drop_dmabuf(struct nvs_mapping *m)
{
	dma_buf_unmap_attachment_unlocked(m->attachment, m->exported, DMA_BIDIRECTIONAL);
	dma_buf_detach(m->dmabuf, m->attachment);
	dma_buf_put(m->dmabuf);
}

static int nvs_attach(struct nvs_function *fn, struct nvs_mapping *m)
{
	int err;

	m->attachment = dma_buf_attach(m->dmabuf, &fn->pdev->dev);
	if (IS_ERR(m->attachment))
		return PTR_ERR(m->attachment);
	m->exported = dma_buf_map_attachment_unlocked(m->attachment, DMA_BIDIRECTIONAL);
	if (!IS_ERR(m->exported))
		return 0;
	err = PTR_ERR(m->exported);
	dma_buf_detach(m->dmabuf, m->attachment);
	return err;
}

int nvs_map_dmabuf(struct nvs_function *fn, struct nvstream_map_dmabuf *map)
{
	struct dma_buf *dmabuf = dma_buf_get(map->fd);
	struct nvs_mapping *m;
	int err = -EINVAL;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (!PAGE_ALIGNED(dmabuf->size) || dmabuf->size >> PAGE_SHIFT > MOST_PAGES)
		goto put;
	err = -ENOMEM;
	m = nvs_new(NVS_DMABUF, dmabuf->size);
	if (!m)
		goto put;
	m->dmabuf = dmabuf;
	err = nvs_attach(fn, m);
	if (err)
		goto free;
	err = nvs_fill_bus(m, m->exported);
	if (err) {
		nvs_drop_dmabuf(m);
		kvfree(m->bus);
		kfree(m);
		return err;
	}
	map->bytes = m->bytes;
	map->handle = nvs_enter(fn, m);
	return 0;
free:
	kfree(m);
put:
	dma_buf_put(dmabuf);
	return err;
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
	kvfree(m->bus);
	kfree(m);
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
	dev_crit(&fn->pdev->dev, "the function cannot be stopped: %llu bytes stay pinned until the machine restarts\n",
		 fn->pinned_bytes);
	atomic_add(fn->mappings, &leaked);
	/* Nothing frees an entry that is in no list; the module stays, since its counters are still asked for. */
	INIT_LIST_HEAD(&fn->ledger);
	fn->mappings = 0;
	fn->pinned_bytes = 0;
	fn->mapped_bytes = 0;
}
