// SPDX-License-Identifier: GPL-2.0
/* How does memory of the caller stay where it is, and under which addresses does the function reach it? */
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "internal.h"

static void nvs_unpin_pages(struct nvs_mapping *m, unsigned long count)
{
	unpin_user_pages_dirty_lock(m->pages, count, true);
	kvfree(m->pages);
	account_locked_vm(m->mm, m->page_count, false);
	mmdrop(m->mm);
}

void nvs_drop_pin(struct nvs_function *fn, struct nvs_mapping *m)
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
	nvs_free_mapping(m);
	return err;
}
