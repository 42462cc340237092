// SPDX-License-Identifier: GPL-2.0
/*
 * How does a machine without a card look as if NVIDIA's driver were loaded? It has the driver's character devices, by
 * name and number, which can be opened and do nothing, and the files by which others see that the driver is there.
 * NVIDIA's README, chapters "The /proc/driver/nvidia Interface" and "Access to the /dev files".
 */
#include <linux/cdev.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#define LAB_MAJOR 195
#define LAB_CONTROL 255
#define LAB_HOME "driver/nvidia"
#define LAB_GPU LAB_HOME "/gpus/0000:01:00.0"

static const struct file_operations lab_files = { .owner = THIS_MODULE };
static struct cdev lab_card, lab_control, lab_uvm;

static int lab_version(struct seq_file *file, void *unused)
{
	seq_puts(file, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n");
	return 0;
}

static int lab_information(struct seq_file *file, void *unused)
{
	seq_puts(file, "Model: \t\t NVIDIA GeForce RTX 3090\nDevice Minor: \t 0\n");
	return 0;
}

static int lab_add(struct cdev *device, dev_t number)
{
	int error;

	cdev_init(device, &lab_files);
	error = cdev_add(device, number, 1);
	if (error)
		unregister_chrdev_region(number, 1);
	return error;
}

static void lab_remove(struct cdev *device)
{
	dev_t number = device->dev;

	cdev_del(device);
	unregister_chrdev_region(number, 1);
}

static int lab_add_at(struct cdev *device, dev_t number, const char *name)
{
	int error = register_chrdev_region(number, 1, name);

	return error ? error : lab_add(device, number);
}

static int lab_add_anywhere(struct cdev *device, const char *name)
{
	dev_t number;
	int error = alloc_chrdev_region(&number, 0, 1, name);

	return error ? error : lab_add(device, number);
}

static int lab_tell(void)
{
	if (proc_mkdir(LAB_HOME, NULL) && proc_mkdir(LAB_HOME "/gpus", NULL) && proc_mkdir(LAB_GPU, NULL) &&
	    proc_create_single(LAB_GPU "/information", 0444, NULL, lab_information) &&
	    proc_create_single(LAB_HOME "/version", 0444, NULL, lab_version))
		return 0;
	remove_proc_subtree(LAB_HOME, NULL);
	return -ENOMEM;
}

static int __init lab_init(void)
{
	int error = lab_add_at(&lab_card, MKDEV(LAB_MAJOR, 0), "nvidia");

	if (error)
		return error;
	error = lab_add_at(&lab_control, MKDEV(LAB_MAJOR, LAB_CONTROL), "nvidiactl");
	if (error)
		goto no_control;
	error = lab_add_anywhere(&lab_uvm, "nvidia-uvm");
	if (error)
		goto no_uvm;
	error = lab_tell();
	if (error)
		goto untold;
	return 0;
untold:
	lab_remove(&lab_uvm);
no_uvm:
	lab_remove(&lab_control);
no_control:
	lab_remove(&lab_card);
	return error;
}

static void __exit lab_exit(void)
{
	remove_proc_subtree(LAB_HOME, NULL);
	lab_remove(&lab_uvm);
	lab_remove(&lab_control);
	lab_remove(&lab_card);
}

module_init(lab_init);
module_exit(lab_exit);
MODULE_DESCRIPTION("The traces of a card's driver, in tests");
MODULE_LICENSE("GPL");
