"""`python -m endhost ROLE JSON`: one active agent as a process; JSON holds the options of its function.

Sources say `ready` once they listen, and end with the process that started them; the others end by themselves.
"""

import asyncio
import importlib
import json
import sys

ROLES = {  # name: module, function, whether it goes on for ever
    "serve": ("endhost.web", "listen", True),
    "play": ("endhost.player", "play", False),
    "source": ("endhost.bulk", "source", True),
    "fetch": ("endhost.bulk", "fetch", False),
    "flood": ("endhost.flood", "flood", False),
    "count": ("endhost.flood", "count", False),
    "bursts": ("endhost.bursts", "bursts", False),
    "webpages": ("endhost.webpages", "webpages", True),
    "askers": ("endhost.askers", "askers", False),
    "pages": ("endhost.pages", "pages", False),
}


async def act(role, options):
    module, function, endless = ROLES[role]
    await getattr(importlib.import_module(module), function)(**options)
    if endless:
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(act(sys.argv[1], json.loads(sys.argv[2])))
