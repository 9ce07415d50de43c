"""Exit statuses, and the exception that ends a command with one sentence. Imports nothing, so that help is quick."""

DONE, RUN_ERROR, USAGE, PRIVILEGE, INPUT, LOST = range(6)


class Exit(Exception):
    """Ends the command with `status`; str() is one sentence for the user, naming the fix."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status
