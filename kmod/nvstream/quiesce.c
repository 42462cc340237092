// SPDX-License-Identifier: GPL-2.0
/*
 * How is a drive stopped, so that it touches no memory any more?
 *
 * NVM Express Base Specification 2.0, section 3.6: a controller that is disabled (CC.EN cleared to 0, CSTS.RDY seen 0)
 * has ended or forgotten every command. One that does not do so in the time it names itself is reset by its function.
 */
#include <linux/delay.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/iopoll.h>

#include "internal.h"

#define REG_CAP		0x00
#define REG_CC		0x14
#define REG_CSTS	0x1c
#define CC_EN		BIT(0)
#define CSTS_RDY	BIT(0)
#define CAP_TO(cap)	(((cap) >> 24) & 0xff)	/* in units of 500 ms */
#define CAP_TO_US	(500 * USEC_PER_MSEC)
#define GONE		0xffffffffU
#define RESET_TRIES	50
#define RESET_PAUSE_MS	100

static u32 nvs_read(struct nvs_function *fn, unsigned int offset)
{
	return readl(fn->registers + offset);
}

/* Whether the function can reach no memory: disabled, or not there. */
bool nvs_is_quiet(struct nvs_function *fn)
{
	u32 status;

	if (fn->gone || !pci_device_is_present(fn->pdev))
		return true;
	status = nvs_read(fn, REG_CSTS);
	return status == GONE || (!(nvs_read(fn, REG_CC) & CC_EN) && !(status & CSTS_RDY));
}

static int nvs_disable(struct nvs_function *fn)
{
	u32 status, config = nvs_read(fn, REG_CC);
	u64 cap = lo_hi_readq(fn->registers + REG_CAP);

	if (config == GONE)
		return 0;
	writel(config & ~CC_EN, fn->registers + REG_CC);
	return readl_poll_timeout(fn->registers + REG_CSTS, status, status == GONE || !(status & CSTS_RDY),
				  USEC_PER_MSEC, max_t(u64, CAP_TO(cap), 1) * CAP_TO_US);
}

/* Whoever unbinds a driver holds the device's lock already; elsewhere only trying for it cannot deadlock. */
static int nvs_reset(struct nvs_function *fn, bool device_locked)
{
	int i, err = -EAGAIN;

	if (device_locked)
		return __pci_reset_function_locked(fn->pdev);
	for (i = 0; i < RESET_TRIES && err == -EAGAIN; i++) {
		err = pci_try_reset_function(fn->pdev);
		if (err == -EAGAIN)
			msleep(RESET_PAUSE_MS);
	}
	return err;
}

/* 0 once nothing of the function is on its way to memory. The caller holds fn->lock. */
int nvs_quiesce(struct nvs_function *fn, bool device_locked)
{
	int err;

	if (fn->gone || !pci_device_is_present(fn->pdev))
		return 0;
	err = nvs_disable(fn);
	pci_clear_master(fn->pdev);
	if (!err)
		return 0;
	dev_warn(&fn->pdev->dev, "the controller does not stop (CSTS %#x); resetting the function\n",
		 nvs_read(fn, REG_CSTS));
	err = nvs_reset(fn, device_locked);
	pci_clear_master(fn->pdev);
	return err;
}
