"""Calling jitted code cheaply, and keeping it compiled between runs."""

import functools

from numba import cfunc, types

from dataplane.records import CHECKED, JIT


class Kernel:
    """Calls a jitted function by its compiled entry point.

    numba's dispatcher works out the types of its arguments at each call, 12 us with structured arrays; the entry point
    takes 0.4 us. The first call decides the types: later ones must pass the same.
    """

    def __init__(self, function):
        self.function, self.entry = function, None

    def __call__(self, *args):
        if self.entry is not None:
            return self.entry(*args)
        import dataplane.noblas  # noqa: F401  late: what runs no kernel starts without

        result = self.function(*args)
        if JIT:
            self.entry = next(iter(self.function.overloads.values())).entry_point
        return result


@functools.cache
def _stage(function):
    import dataplane.noblas  # noqa: F401

    return cfunc(types.int64(types.int64, types.int64), cache=True)(function)


def stage_address(function):
    """Address of a function of two addresses, compiled for chain.py; 0 where stages are called from Python."""
    return 0 if CHECKED else _stage(function).address
