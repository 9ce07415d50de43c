"""What roles share: they begin together, and tell what they see as JSON lines on stdout."""

import asyncio
import json
import time


def tell(**fields):
    """A line, with the time since 1970 in ns."""
    print(json.dumps({"ts_ns": time.time_ns(), **fields}), flush=True)


async def begin_at(begin_ns, delay_s=0.0):
    """Wait for the moment; when it has passed, not at all."""
    await asyncio.sleep(max(0.0, begin_ns / 1e9 + delay_s - time.time()))
