"""What the user is told: one sentence on stderr. Imports nothing heavy, so that help is quick."""

import os
import sys


def say(sentence):
    """Tell a sentence. That nobody can be told (a log that went away, a full disk) is no reason to stop."""
    try:
        print(f"qoetap: {sentence}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody reads it again
    except OSError:
        pass  # there may be room for the next
