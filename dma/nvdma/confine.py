"""How does a process give up what it will not need? By prctl(2), and by a filter of its system calls, seccomp(2).

The filter is put together by libseccomp, which every distribution with systemd has: it knows the numbers that calls
have on each machine, newer calls than ours, and what else a filter must look at (the other ABIs of a processor, the
order that costs the least). Its interface has been the same since version 2: there is little to bind.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum

LIBRARY = "libseccomp.so.2"
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
# seccomp.h.
KILL_PROCESS, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
BAD_ARCHITECTURE, ALL_THREADS, OPTIMIZE = 2, 4, 8
BINARY_TREE = 2


class Compare(IntEnum):
    """How an argument of a call is held against a number (seccomp.h)."""

    IS = 4
    MASKED_IS = 7


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on argument number `index`, counted from 0: it is held against `value`, in the bits of `mask` alone.

    A filter looks at all 64 bits, also where the call takes an int. So a rule that refuses needs a mask: without one a
    caller gets past it by setting bits that the call ignores.
    """

    index: int
    compare: Compare
    value: int
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One call by its name; with arguments, only where all of them hold."""

    call: str
    arguments: tuple[Argument, ...] = ()


class _Comparison(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint), ("compare", ctypes.c_int), ("first", ctypes.c_uint64),
                ("second", ctypes.c_uint64))


class Filters:
    """The filters of what this process, and all that it starts, may ask of the kernel. None can be taken away again.

    Raises OSError where there is no libseccomp.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(LIBRARY)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_release.argtypes = [ctypes.c_void_p]
        library.seccomp_load.argtypes = [ctypes.c_void_p]
        library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
        library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_rule_add_array.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint,
                                                   ctypes.POINTER(_Comparison)]
        self._library = library

    def allow_only(self, rules: Iterable[Rule], number: int) -> None:
        """Every other call fails with error `number`; one of another ABI ends the process. Raises OSError."""
        self._load(ERRNO | number, ALLOW, rules)

    def refuse(self, rules: Iterable[Rule], number: int) -> None:
        """These calls fail with error `number`. Raises OSError."""
        self._load(ALLOW, ERRNO | number, rules)

    def _load(self, otherwise: int, action: int, rules: Iterable[Rule]) -> None:
        with ExitStack() as stack:
            filter_ = self._library.seccomp_init(otherwise)
            if not filter_:
                raise OSError(f"{LIBRARY}: there is no filter for {platform.machine()}")
            stack.callback(self._library.seccomp_release, filter_)
            _check(self._library.seccomp_attr_set(filter_, BAD_ARCHITECTURE, KILL_PROCESS), "other ABIs")
            _check(self._library.seccomp_attr_set(filter_, ALL_THREADS, 1), "all threads")
            # Faster, that is all: older versions do not know it.
            self._library.seccomp_attr_set(filter_, OPTIMIZE, BINARY_TREE)
            for rule in rules:
                self._add(filter_, action, rule)
            _check(self._library.seccomp_load(filter_), "the kernel takes no filter")

    def _add(self, filter_: int, action: int, rule: Rule) -> None:
        call = self._library.seccomp_syscall_resolve_name(rule.call.encode())
        if call < 0:
            # This machine does not have it, or the library is older than it: then nobody here relies on it.
            return
        count = len(rule.arguments)
        comparisons = (_Comparison * max(1, count))(*map(_comparison, rule.arguments))
        _check(self._library.seccomp_rule_add_array(filter_, action, call, count, comparisons), rule.call)


def _comparison(held: Argument) -> _Comparison:
    if held.compare is Compare.MASKED_IS:
        return _Comparison(held.index, held.compare, held.mask, held.value)
    return _Comparison(held.index, held.compare, held.value, 0)


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(-result, f"{os.strerror(-result)}: {what}")


def gain_nothing() -> None:
    """No program that this process starts has more rights than it has: none of setuid's, none of file capabilities."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def hide_memory() -> None:
    """Nobody but root reads this process's memory or environment, traces it or gets its core; execve(2) undoes it."""
    _prctl(PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """Undoes `hide_memory`: what proc(5) has of this process belongs to its user again."""
    _prctl(PR_SET_DUMPABLE, 1)


def end_with(parent: int) -> None:
    """The kernel kills this process when the thread that forked it ends, whatever state it is in; fork(2) undoes it.

    Raises ProcessLookupError when `parent`, that thread's process, has ended already.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent} has ended")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")
