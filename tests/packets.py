"""The packet writer of pcaps/, under the tests' roof. It shares no code with wire.py."""

from pcaps.files import *  # noqa: F403
from pcaps.messages import *  # noqa: F403
from pcaps.packets import *  # noqa: F403
