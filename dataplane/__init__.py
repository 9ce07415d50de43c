"""Packets in, events out. Importing this names the kernel cache, so it comes before numba everywhere."""

from dataplane.cache import use_kernel_cache

use_kernel_cache()
