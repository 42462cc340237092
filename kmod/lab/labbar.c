// SPDX-License-Identifier: GPL-2.0
/*
 * How does a test get a GPU's dma-buf without a GPU? Here BAR 2 of QEMU's ivshmem stands in for its memory.
 *
 * It exports as drivers of GPUs do: only to importers that take addresses of another device, with a bus address made
 * for each of them, in more pieces than one. What it counts in its parameters is what a driver would still hold.
 */
#include <linux/atomic.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include "labbar.h"

#define VENDOR		0x1af4
#define DEVICE		0x1110
#define MEMORY_BAR	2
#define PIECE_BYTES	(3U << 20)

/* A part of the BAR that a dma-buf stands for. */
struct lab_part {
	phys_addr_t address;
	u64 bytes;
};

static struct pci_dev *owner;

static atomic_t exported = ATOMIC_INIT(0);
static atomic_t pinned = ATOMIC_INIT(0);
static atomic_t mapped = ATOMIC_INIT(0);

static int lab_show(char *buffer, const struct kernel_param *parameter)
{
	return sysfs_emit(buffer, "%d\n", atomic_read((atomic_t *)parameter->arg));
}

static const struct kernel_param_ops lab_counter = { .get = lab_show };

module_param_cb(exported, &lab_counter, &exported, 0444);
MODULE_PARM_DESC(exported, "dma-bufs that are not released");
module_param_cb(pinned, &lab_counter, &pinned, 0444);
MODULE_PARM_DESC(pinned, "times that an importer pinned one and did not unpin it");
module_param_cb(mapped, &lab_counter, &mapped, 0444);
MODULE_PARM_DESC(mapped, "times that an importer mapped one and did not unmap it");

static int lab_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	return attachment->peer2peer ? 0 : -EOPNOTSUPP;
}

static int lab_pin(struct dma_buf_attachment *attachment)
{
	atomic_inc(&pinned);
	return 0;
}

static void lab_unpin(struct dma_buf_attachment *attachment)
{
	atomic_dec(&pinned);
}

static void lab_unmap_pieces(struct device *dev, struct sg_table *table, unsigned int count,
			     enum dma_data_direction direction)
{
	struct scatterlist *sg;
	unsigned int i;

	for_each_sg(table->sgl, sg, count, i)
		dma_unmap_resource(dev, sg_dma_address(sg), sg_dma_len(sg), direction, 0);
}

static int lab_map_pieces(struct device *dev, struct sg_table *table, const struct lab_part *part,
			  enum dma_data_direction direction)
{
	u64 done = 0, bytes;
	struct scatterlist *sg;
	unsigned int i;

	for_each_sgtable_dma_sg(table, sg, i) {
		bytes = min_t(u64, PIECE_BYTES, part->bytes - done);
		sg_dma_address(sg) = dma_map_resource(dev, part->address + done, bytes, direction, 0);
		if (dma_mapping_error(dev, sg_dma_address(sg))) {
			lab_unmap_pieces(dev, table, i, direction);
			return -EIO;
		}
		sg_dma_len(sg) = bytes;
		done += bytes;
	}
	return 0;
}

static struct sg_table *lab_map(struct dma_buf_attachment *attachment, enum dma_data_direction direction)
{
	const struct lab_part *part = attachment->dmabuf->priv;
	struct sg_table *table = kzalloc(sizeof(*table), GFP_KERNEL);
	int err;

	if (!table)
		return ERR_PTR(-ENOMEM);
	err = sg_alloc_table(table, DIV_ROUND_UP(part->bytes, PIECE_BYTES), GFP_KERNEL);
	if (err)
		goto free;
	err = lab_map_pieces(attachment->dev, table, part, direction);
	if (err)
		goto free_table;
	atomic_inc(&mapped);
	return table;
free_table:
	sg_free_table(table);
free:
	kfree(table);
	return ERR_PTR(err);
}

static void lab_unmap(struct dma_buf_attachment *attachment, struct sg_table *table, enum dma_data_direction direction)
{
	lab_unmap_pieces(attachment->dev, table, table->nents, direction);
	sg_free_table(table);
	kfree(table);
	atomic_dec(&mapped);
}

static void lab_release(struct dma_buf *dmabuf)
{
	kfree(dmabuf->priv);
	atomic_dec(&exported);
}

static const struct dma_buf_ops lab_operations = {
	.attach = lab_attach,
	.pin = lab_pin,
	.unpin = lab_unpin,
	.map_dma_buf = lab_map,
	.unmap_dma_buf = lab_unmap,
	.release = lab_release,
};

static struct dma_buf *lab_export(const struct labbar_export *wanted)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	u64 length = pci_resource_len(owner, MEMORY_BAR);
	struct dma_buf *dmabuf;
	struct lab_part *part;

	if (!wanted->bytes || wanted->offset > length || wanted->bytes > length - wanted->offset)
		return ERR_PTR(-EINVAL);
	part = kzalloc(sizeof(*part), GFP_KERNEL);
	if (!part)
		return ERR_PTR(-ENOMEM);
	part->address = pci_resource_start(owner, MEMORY_BAR) + wanted->offset;
	part->bytes = wanted->bytes;
	info.ops = &lab_operations;
	info.size = wanted->size;
	info.flags = O_CLOEXEC;
	info.priv = part;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf))
		kfree(part);
	else
		atomic_inc(&exported);
	return dmabuf;
}

static long lab_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct labbar_export wanted;
	struct dma_buf *dmabuf;
	int fd;

	if (command != LABBAR_EXPORT)
		return -ENOTTY;
	if (copy_from_user(&wanted, (void __user *)argument, sizeof(wanted)))
		return -EFAULT;
	dmabuf = lab_export(&wanted);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

static const struct file_operations lab_file_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = lab_ioctl,
};

static struct miscdevice lab_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "labbar",
	.fops = &lab_file_operations,
	.mode = 0600,
};

static int __init lab_init(void)
{
	int err;

	owner = pci_get_device(VENDOR, DEVICE, NULL);
	if (!owner)
		return -ENODEV;
	err = pci_enable_device_mem(owner);
	if (err)
		goto put;
	err = misc_register(&lab_device);
	if (err)
		goto disable;
	return 0;
disable:
	pci_disable_device(owner);
put:
	pci_dev_put(owner);
	return err;
}

static void __exit lab_exit(void)
{
	misc_deregister(&lab_device);
	pci_disable_device(owner);
	pci_dev_put(owner);
}

module_init(lab_init);
module_exit(lab_exit);
MODULE_DESCRIPTION("A stand-in for a GPU's memory, as dma-bufs, in tests");
MODULE_LICENSE("GPL");
#if KERNEL_VERSION(6, 13, 0) <= LINUX_VERSION_CODE
MODULE_IMPORT_NS("DMA_BUF");
#else
MODULE_IMPORT_NS(DMA_BUF);
#endif
