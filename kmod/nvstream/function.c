// SPDX-License-Identifier: GPL-2.0
/*
 * How is a drive bound, opened, driven from user space and let go of?
 *
 * The module names no device: a function is its own only when driver_override says `nvstream`. It appears as
 * /dev/nvstream/ADDRESS, for root; who opens it first has it, until the file is closed. Closing, however it comes
 * about, stops the drive before a page is unpinned.
 */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/panic.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "internal.h"

static void nvs_free(struct kref *kref)
{
	struct nvs_function *fn = container_of(kref, struct nvs_function, kref);

	pci_dev_put(fn->pdev);
	kfree(fn->saved);
	kfree(fn);
}

static struct nvs_function *nvs_function_of(struct file *file)
{
	return container_of(file->private_data, struct nvs_function, misc);
}

/*
 * Who drives a function that no IOMMU translates for reaches all memory. As in VFIO without an IOMMU: that is a right
 * that has to be there, and the kernel remembers that it was used.
 */
static int nvs_allow(struct nvs_function *fn)
{
	if (nvs_is_translated(fn))
		return 0;
	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	dev_warn_once(&fn->pdev->dev, "no IOMMU: %s can reach all memory (kernel tainted)\n", current->comm);
	add_taint(TAINT_USER, LOCKDEP_STILL_OK);
	return 0;
}

static int nvs_open(struct inode *inode, struct file *file)
{
	struct nvs_function *fn = nvs_function_of(file);
	int err;

	mutex_lock(&fn->lock);
	if (fn->gone)
		err = -ENODEV;
	else if (fn->mapping)
		err = -EBUSY;
	else
		err = nvs_allow(fn);
	if (!err)
		fn->mapping = file->f_mapping;
	mutex_unlock(&fn->lock);
	if (!err)
		kref_get(&fn->kref);
	return err;
}

static void nvs_stop(struct nvs_function *fn, bool device_locked)
{
	if (nvs_quiesce(fn, device_locked))
		nvs_leak_all(fn);
	else
		nvs_unmap_all(fn);
}

static int nvs_release(struct inode *inode, struct file *file)
{
	struct nvs_function *fn = nvs_function_of(file);

	mutex_lock(&fn->lock);
	nvs_stop(fn, false);
	fn->mapping = NULL;
	mutex_unlock(&fn->lock);
	kref_put(&fn->kref, nvs_free);
	return 0;
}

static int nvs_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct nvs_function *fn = nvs_function_of(file);
	unsigned long bytes = vma->vm_end - vma->vm_start;
	int err = -ENODEV;

	if (vma->vm_pgoff || bytes > PAGE_ALIGN(pci_resource_len(fn->pdev, REGISTER_BAR)) ||
	    !(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	mutex_lock(&fn->gone_lock);
	if (!fn->gone) {
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
		err = io_remap_pfn_range(vma, vma->vm_start, pci_resource_start(fn->pdev, REGISTER_BAR) >> PAGE_SHIFT,
					 bytes, vma->vm_page_prot);
	}
	mutex_unlock(&fn->gone_lock);
	return err;
}

union nvs_argument {
	struct nvstream_pin pin;
	struct nvstream_map_bar bar;
	struct nvstream_map_dmabuf dmabuf;
	struct nvstream_pages pages;
	struct nvstream_unmap unmap;
};

static int nvs_change(struct nvs_function *fn, unsigned int command, union nvs_argument *argument)
{
	switch (command) {
	case NVSTREAM_PIN:
		return nvs_pin(fn, &argument->pin);
	case NVSTREAM_MAP_BAR:
		return nvs_map_bar(fn, &argument->bar);
	case NVSTREAM_MAP_DMABUF:
		return nvs_map_dmabuf(fn, &argument->dmabuf);
	case NVSTREAM_GET_PAGES:
		return nvs_get_pages(fn, &argument->pages);
	case NVSTREAM_UNMAP:
		return argument->unmap.reserved ? -EINVAL : nvs_unmap(fn, argument->unmap.handle);
	default:
		return -ENOTTY;
	}
}

static long nvs_call(struct nvs_function *fn, unsigned int command, void __user *user)
{
	union nvs_argument argument;
	size_t bytes = _IOC_SIZE(command);
	int err;

	if (fn->gone)
		return -ENODEV;
	switch (command) {
	case NVSTREAM_GET_CAPS:
		return nvs_get_caps(fn, user);
	case NVSTREAM_SET_MASTER:
		pci_set_master(fn->pdev);
		return 0;
	case NVSTREAM_QUIESCE:
		return nvs_quiesce(fn, false);
	}
	if (bytes > sizeof(argument))
		return -ENOTTY;
	if (copy_from_user(&argument, user, bytes))
		return -EFAULT;
	err = nvs_change(fn, command, &argument);
	if (!err && _IOC_DIR(command) & _IOC_READ && copy_to_user(user, &argument, bytes))
		/* What was mapped stays in the ledger, and goes when the file is closed. */
		return -EFAULT;
	return err;
}

static long nvs_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct nvs_function *fn = nvs_function_of(file);
	long result;

	mutex_lock(&fn->lock);
	result = nvs_call(fn, command, (void __user *)argument);
	mutex_unlock(&fn->lock);
	return result;
}

static const struct file_operations nvs_operations = {
	.owner = THIS_MODULE,
	.open = nvs_open,
	.release = nvs_release,
	.mmap = nvs_mmap,
	.unlocked_ioctl = nvs_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct nvs_function *nvs_new_function(struct pci_dev *pdev)
{
	struct nvs_function *fn = kzalloc(sizeof(*fn), GFP_KERNEL);

	if (!fn)
		return NULL;
	kref_init(&fn->kref);
	mutex_init(&fn->lock);
	mutex_init(&fn->gone_lock);
	INIT_LIST_HEAD(&fn->ledger);
	fn->pdev = pci_dev_get(pdev);
	snprintf(fn->name, sizeof(fn->name), "nvstream!%s", pci_name(pdev));
	fn->misc.minor = MISC_DYNAMIC_MINOR;
	fn->misc.name = fn->name;
	fn->misc.fops = &nvs_operations;
	fn->misc.parent = &pdev->dev;
	fn->misc.mode = 0600;
	return fn;
}

static int nvs_enable(struct nvs_function *fn)
{
	struct pci_dev *pdev = fn->pdev;
	int err;

	err = pci_enable_device_mem(pdev);
	if (err)
		return err;
	err = pci_request_mem_regions(pdev, "nvstream");
	if (err)
		goto disable;
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (err)
		goto release;
	dma_set_max_seg_size(&pdev->dev, UINT_MAX);
	err = -ENOMEM;
	fn->registers = pci_ioremap_bar(pdev, REGISTER_BAR);
	if (!fn->registers)
		goto release;
	pci_clear_master(pdev);
	pci_save_state(pdev);
	fn->saved = pci_store_saved_state(pdev);
	if (!fn->saved)
		goto unmap;
	/* The kernel's driver leaves a controller shut down but enabled. */
	err = nvs_quiesce(fn, true);
	if (err)
		goto unmap;
	return 0;
unmap:
	iounmap(fn->registers);
release:
	pci_release_mem_regions(pdev);
disable:
	pci_disable_device(pdev);
	return err;
}

static void nvs_disable_function(struct nvs_function *fn)
{
	iounmap(fn->registers);
	pci_release_mem_regions(fn->pdev);
	pci_disable_device(fn->pdev);
}

static int nvs_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct nvs_function *fn;
	int err;

	if (pdev->class != PCI_CLASS_STORAGE_EXPRESS)
		return -ENODEV;
	fn = nvs_new_function(pdev);
	if (!fn)
		return -ENOMEM;
	err = nvs_enable(fn);
	if (err)
		goto put;
	err = misc_register(&fn->misc);
	if (err)
		goto disable;
	pci_set_drvdata(pdev, fn);
	return 0;
disable:
	nvs_disable_function(fn);
put:
	kref_put(&fn->kref, nvs_free);
	return err;
}

/* Unbound or pulled out, perhaps while a process drives it: that process keeps a file that says ENODEV. */
static void nvs_remove(struct pci_dev *pdev)
{
	struct nvs_function *fn = pci_get_drvdata(pdev);

	misc_deregister(&fn->misc);
	mutex_lock(&fn->lock);
	nvs_stop(fn, true);
	mutex_lock(&fn->gone_lock);
	fn->gone = true;
	mutex_unlock(&fn->gone_lock);
	if (fn->mapping)
		unmap_mapping_range(fn->mapping, 0, 0, 1);
	mutex_unlock(&fn->lock);
	nvs_disable_function(fn);
	kref_put(&fn->kref, nvs_free);
}

static const struct pci_device_id nvs_ids[] = { { } };

static struct pci_driver nvs_driver = {
	.name = "nvstream",
	.id_table = nvs_ids,
	.probe = nvs_probe,
	.remove = nvs_remove,
	.shutdown = nvs_remove,
};
module_pci_driver(nvs_driver);

MODULE_DESCRIPTION("An NVMe function for a process, and the memory that it may reach");
MODULE_LICENSE("GPL");
MODULE_VERSION("1");
