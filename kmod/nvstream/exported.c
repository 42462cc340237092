// SPDX-License-Identifier: GPL-2.0
/*
 * How does a drive reach memory that another driver exports as a dma-buf?
 *
 * Exporters hand out addresses of a device's memory only to an importer that says it needs no struct page
 * (allow_peer2peer), which only a dynamic one can say; others get a copy in the machine's memory, or nothing. A drive's
 * commands hold addresses, so what it reaches is pinned: its exporter may not move it until it is unmapped.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/version.h>

#include "internal.h"

#define FILL_TIMEOUT_MS 10000

static void nvs_moved(struct dma_buf_attachment *attachment)
{
	dev_crit(attachment->dev, "a dma-buf was moved that is pinned: what was read into it is lost\n");
}

static const struct dma_buf_attach_ops nvs_importer = {
	.allow_peer2peer = true,
	.move_notify = nvs_moved,
};

/* Once its exporter has moved it to where it stays, which may have begun only. The caller holds its reservation. */
static int nvs_wait_until_filled(struct dma_buf *dmabuf)
{
	long left = dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_KERNEL, false,
					  msecs_to_jiffies(FILL_TIMEOUT_MS));

	return left < 0 ? left : left ? 0 : -ETIMEDOUT;
}

static int nvs_map_pinned(struct nvs_mapping *m)
{
	int err;

	err = dma_buf_pin(m->attachment);
	if (err)
		return err;
	m->exported = dma_buf_map_attachment(m->attachment, DMA_BIDIRECTIONAL);
	if (IS_ERR(m->exported)) {
		err = PTR_ERR(m->exported);
		goto unpin;
	}
	err = nvs_wait_until_filled(m->dmabuf);
	if (!err)
		return 0;
	dma_buf_unmap_attachment(m->attachment, m->exported, DMA_BIDIRECTIONAL);
unpin:
	dma_buf_unpin(m->attachment);
	return err;
}

static int nvs_attach(struct nvs_function *fn, struct nvs_mapping *m)
{
	int err;

	m->attachment = dma_buf_dynamic_attach(m->dmabuf, &fn->pdev->dev, &nvs_importer, m);
	if (IS_ERR(m->attachment))
		return PTR_ERR(m->attachment);
	dma_resv_lock(m->dmabuf->resv, NULL);
	err = nvs_map_pinned(m);
	dma_resv_unlock(m->dmabuf->resv);
	if (err)
		dma_buf_detach(m->dmabuf, m->attachment);
	return err;
}

void nvs_drop_dmabuf(struct nvs_mapping *m)
{
	dma_resv_lock(m->dmabuf->resv, NULL);
	dma_buf_unmap_attachment(m->attachment, m->exported, DMA_BIDIRECTIONAL);
	dma_buf_unpin(m->attachment);
	dma_resv_unlock(m->dmabuf->resv);
	dma_buf_detach(m->dmabuf, m->attachment);
	dma_buf_put(m->dmabuf);
}

int nvs_map_dmabuf(struct nvs_function *fn, struct nvstream_map_dmabuf *map)
{
	struct dma_buf *dmabuf = dma_buf_get(map->fd);
	struct nvs_mapping *m;
	int err = -EINVAL;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (!dmabuf->size || !PAGE_ALIGNED(dmabuf->size) || dmabuf->size >> PAGE_SHIFT > MOST_PAGES)
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
		nvs_free_mapping(m);
		return err;
	}
	map->bytes = m->bytes;
	map->handle = nvs_enter(fn, m);
	return 0;
free:
	nvs_free_mapping(m);
put:
	dma_buf_put(dmabuf);
	return err;
}

#if KERNEL_VERSION(6, 13, 0) <= LINUX_VERSION_CODE
MODULE_IMPORT_NS("DMA_BUF");
#else
MODULE_IMPORT_NS(DMA_BUF);
#endif
