"""Which threads multiply? A pool whose threads sleep while the engine waits for a read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch


class Workers:
    """`threads` threads, the caller being one of them. Each runs torch single-threaded.

    Work is cut by its shape alone, never by the number of threads, so that no result depends on that number.
    """

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._pool: ThreadPoolExecutor | None = None

    def start(self, stack: ExitStack) -> None:
        """Starts the helper threads; `stack` stops them."""
        torch.set_grad_enabled(False)
        torch.set_num_threads(1)
        if self.threads > 1:
            pool = ThreadPoolExecutor(self.threads - 1, "kernel", initializer=torch.set_num_threads, initargs=(1,))
            self._pool = stack.enter_context(pool)

    def run(self, work: Callable[[int], None], items: int) -> None:
        """Calls work(0) ... work(items - 1), each once, in any order on any thread; raises what they raise."""
        if self._pool is None or items == 1:
            for item in range(items):
                work(item)
            return
        # A shared counter hands out items: next() on a range iterator is atomic under the GIL.
        turn = iter(range(items))

        def drain() -> None:
            for item in turn:
                work(item)

        helpers = [self._pool.submit(drain) for _ in range(min(self.threads, items) - 1)]
        try:
            drain()
        finally:
            for helper in helpers:
                helper.result()
