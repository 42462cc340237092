// SPDX-License-Identifier: GPL-2.0
/*
 * How is a drive stopped, so that it touches no memory any more?
 *
 * NVM Express Base Specification 2.0, section 3.6: a controller that is disabled (CC.EN cleared to 0, CSTS.RDY seen 0)
 * has ended or forgotten every command. One that does not do so in the time it names itself is reset by its function.
 *
 * Registers that do not answer (all ones; zeros where a host bridge or QEMU makes them up) say nothing of the
 * controller. It is quiet for certain only when its configuration space does not answer either: then it is not on the
 * bus any more, over which all that it wrote would have to come. The kernel's own driver gives memory back in that case
 * too. Where that answers, the registers alone are out of reach (memory space switched off, BAR moved, a sleeping
 * function) and the controller may run: it gets the configuration back that it had when it was bound, then a reset.
 * Whether a reset took place is seen in the registers too: the kernel cannot tell, and says "done" of a function that
 * ignores it. What is never seen to be quiet is not.
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
#define RESET_TRIES	50
#define RESET_PAUSE_MS	100

static u32 nvs_read(struct nvs_function *fn, unsigned int offset)
{
	return readl(fn->registers + offset);
}

static bool nvs_is_gone(struct nvs_function *fn)
{
	return fn->gone || !pci_device_is_present(fn->pdev);
}

/* Whether what was read before came from the controller: its CAP is never either of these (section 3.1.3.1). */
static bool nvs_answers(struct nvs_function *fn)
{
	u64 cap = lo_hi_readq(fn->registers + REG_CAP);

	return cap && cap != U64_MAX;
}

/* Whether the function can reach no memory: seen to be disabled, or not there. */
bool nvs_is_quiet(struct nvs_function *fn)
{
	if (nvs_is_gone(fn))
		return true;
	return !(nvs_read(fn, REG_CC) & CC_EN) && !(nvs_read(fn, REG_CSTS) & CSTS_RDY) && nvs_answers(fn);
}

static int nvs_disable(struct nvs_function *fn)
{
	u32 status, config = nvs_read(fn, REG_CC);
	u64 cap = lo_hi_readq(fn->registers + REG_CAP);
	int err;

	if (!nvs_answers(fn))
		return -ENXIO;
	writel(config & ~CC_EN, fn->registers + REG_CC);
	err = readl_poll_timeout(fn->registers + REG_CSTS, status, status == U32_MAX || !(status & CSTS_RDY),
				 USEC_PER_MSEC, max_t(u64, CAP_TO(cap), 1) * CAP_TO_US);
	return nvs_answers(fn) ? err : -ENXIO;
}

/* Its BARs where they were, memory space on, bus mastering off. */
static void nvs_restore_configuration(struct nvs_function *fn)
{
	if (!pci_load_saved_state(fn->pdev, fn->saved))
		pci_restore_state(fn->pdev);
	pci_clear_master(fn->pdev);
}

/* Whoever binds or unbinds a driver holds the device's lock already; elsewhere only trying for it cannot deadlock. */
static int nvs_reset(struct nvs_function *fn, bool device_locked)
{
	int i, err = -EAGAIN;

	if (device_locked)
		return pci_reset_function_locked(fn->pdev);
	for (i = 0; i < RESET_TRIES && err == -EAGAIN; i++) {
		err = pci_try_reset_function(fn->pdev);
		if (err == -EAGAIN)
			msleep(RESET_PAUSE_MS);
	}
	return err;
}

/* 0 once nothing of the function is on its way to memory. The caller holds fn->lock, or has the function alone. */
int nvs_quiesce(struct nvs_function *fn, bool device_locked)
{
	int err;

	if (nvs_is_gone(fn))
		return 0;
	err = nvs_disable(fn);
	pci_clear_master(fn->pdev);
	if (err == -ENXIO) {
		nvs_restore_configuration(fn);
		err = nvs_disable(fn);
	}
	if (!err)
		return 0;
	dev_warn(&fn->pdev->dev, "the controller does not stop (CSTS %#x); resetting the function\n",
		 nvs_read(fn, REG_CSTS));
	err = nvs_reset(fn, device_locked);
	nvs_restore_configuration(fn);
	if (nvs_is_quiet(fn))
		return 0;
	return err ?: -EIO;
}
