// SPDX-License-Identifier: GPL-2.0
/*
 * Which function's BAR may a drive write into, and where does it find it?
 *
 * A display controller's, or that of a function that root named.
 */
#include <linux/dma-mapping.h>
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
static struct pci_dev *nvs_get_peer(const struct nvstream_map_bar *map, phys_addr_t *address)
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

void nvs_drop_bar(struct nvs_function *fn, struct nvs_mapping *m)
{
	dma_unmap_resource(&fn->pdev->dev, m->first, m->bytes, DMA_BIDIRECTIONAL, 0);
	pci_dev_put(m->peer);
}

int nvs_map_bar(struct nvs_function *fn, struct nvstream_map_bar *map)
{
	struct nvs_mapping *m;
	phys_addr_t address;
	int err;

	if (map->reserved || map->reserved2 || !PAGE_ALIGNED(map->offset | map->bytes))
		return -EINVAL;
	m = nvs_new(NVS_BAR, map->bytes);
	if (!m)
		return -ENOMEM;
	m->peer = nvs_get_peer(map, &address);
	if (IS_ERR(m->peer)) {
		err = PTR_ERR(m->peer);
		goto free;
	}
	m->first = dma_map_resource(&fn->pdev->dev, address, m->bytes, DMA_BIDIRECTIONAL, 0);
	err = dma_mapping_error(&fn->pdev->dev, m->first);
	if (err)
		goto put;
	map->handle = nvs_enter(fn, m);
	return 0;
put:
	pci_dev_put(m->peer);
free:
	nvs_free_mapping(m);
	return err;
}
