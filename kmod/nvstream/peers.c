// SPDX-License-Identifier: GPL-2.0
/* Which function's BAR may a drive write into? A display controller's, or one that root named. */
#include <linux/module.h>

#include "internal.h"

static char *peers = "";
module_param(peers, charp, 0444);
MODULE_PARM_DESC(peers, "more functions whose BARs may be mapped, as VENDOR:DEVICE,... in hexadecimal");

static bool nvs_is_named(const struct pci_dev *peer)
{
	const char *at = peers;
	unsigned int vendor, device;
	int length;

	while (sscanf(at, "%x:%x%n", &vendor, &device, &length) == 2) {
		if (vendor == peer->vendor && device == peer->device)
			return true;
		at += length;
		if (*at++ != ',')
			break;
	}
	return false;
}

static bool nvs_is_display(const struct pci_dev *peer)
{
	return peer->class >> 16 == PCI_BASE_CLASS_DISPLAY;
}

/* The peer, with a reference, and the bus address of the window that `map` asks for. */
struct pci_dev *nvs_get_peer(const struct nvstream_map_bar *map, phys_addr_t *address)
{
	struct pci_dev *peer = pci_get_domain_bus_and_slot(map->domain, map->bus, map->devfn);
	u64 length;

	if (!peer)
		return ERR_PTR(-ENODEV);
	if (!nvs_is_display(peer) && !nvs_is_named(peer)) {
		pci_dev_put(peer);
		return ERR_PTR(-EPERM);
	}
	if (map->bar >= PCI_STD_NUM_BARS || !(pci_resource_flags(peer, map->bar) & IORESOURCE_MEM))
		goto invalid;
	length = pci_resource_len(peer, map->bar);
	if (!map->bytes || map->offset > length || map->bytes > length - map->offset)
		goto invalid;
	*address = pci_resource_start(peer, map->bar) + map->offset;
	return peer;
invalid:
	pci_dev_put(peer);
	return ERR_PTR(-EINVAL);
}
