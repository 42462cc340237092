// SPDX-License-Identifier: GPL-2.0
/*
 * How does a test get a drive that nothing stops? While this module is loaded the function that it was told has its
 * registers switched off and takes no write to its configuration space: no reset, no bus mastering cleared. What it was
 * doing it goes on doing. When the module goes the registers are there again. A silent one answers no read of its
 * configuration either: to the kernel it was pulled out.
 */
#include <linux/module.h>
#include <linux/pci.h>

static char *function = "";
module_param(function, charp, 0444);
MODULE_PARM_DESC(function, "which: DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal");

static bool silent;
module_param(silent, bool, 0444);
MODULE_PARM_DESC(silent, "it does not answer at all");

static struct pci_dev *stuck;
static struct pci_ops *real;

static int lab_read(struct pci_bus *bus, unsigned int devfn, int where, int size, u32 *value)
{
	if (silent && devfn == stuck->devfn) {
		PCI_SET_ERROR_RESPONSE(value);
		return PCIBIOS_DEVICE_NOT_FOUND;
	}
	return real->read(bus, devfn, where, size, value);
}

static int lab_write(struct pci_bus *bus, unsigned int devfn, int where, int size, u32 value)
{
	if (devfn == stuck->devfn)
		return PCIBIOS_SUCCESSFUL;
	return real->write(bus, devfn, where, size, value);
}

static struct pci_ops lab_ops = { .read = lab_read, .write = lab_write };

static struct pci_dev *lab_find(void)
{
	unsigned int domain, bus, device, number;

	if (sscanf(function, "%x:%x:%x.%x", &domain, &bus, &device, &number) != 4)
		return NULL;
	return pci_get_domain_bus_and_slot(domain, bus, PCI_DEVFN(device, number));
}

static void lab_switch_registers(bool on)
{
	u16 command;

	pci_read_config_word(stuck, PCI_COMMAND, &command);
	command &= ~PCI_COMMAND_MEMORY;
	pci_write_config_word(stuck, PCI_COMMAND, on ? command | PCI_COMMAND_MEMORY : command);
}

static int __init lab_init(void)
{
	stuck = lab_find();
	if (!stuck)
		return -ENODEV;
	lab_switch_registers(false);
	real = stuck->bus->ops;
	pci_bus_set_ops(stuck->bus, &lab_ops);
	return 0;
}

static void __exit lab_exit(void)
{
	pci_bus_set_ops(stuck->bus, real);
	lab_switch_registers(true);
	pci_dev_put(stuck);
}

module_init(lab_init);
module_exit(lab_exit);
MODULE_DESCRIPTION("A function that does not stop, in tests");
MODULE_LICENSE("GPL");
