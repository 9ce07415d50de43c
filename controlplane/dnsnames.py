"""Domain names as they are compared. Pure; imports nothing, so that `check` needs no library for them."""

LABEL_bytes, NAME_bytes = 63, 253  # at most (RFC 1035, section 2.3.4)


def labels_of(name):
    """Labels of a name in lower case: names are the same in any case (RFC 4343). ValueError: nobody can ask for it."""
    text = name.removesuffix(".")
    labels = tuple(label.encode() for label in text.lower().split("."))
    if not text.isascii() or not all(0 < len(label) <= LABEL_bytes for label in labels) or len(text) > NAME_bytes:
        raise ValueError(f"is no domain name: ASCII, labels of 1 to {LABEL_bytes} characters, {NAME_bytes} together")
    return labels
