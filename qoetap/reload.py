"""What of a changed configuration a running agent takes over, and what takes a restart."""

from qoetap import config

AT_ONCE = ("outputs", "rotate_every", "rotate_size", "live.stats_every", "live.loss_allowed")  # and detectors' options
AT_START = ("enabled", "capacity")  # of a detector


def flat(values, prefix=""):
    """{dotted key: value} of nested sections."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def taken_at_once(key):
    return key in AT_ONCE or (key.startswith("detectors.") and key.rpartition(".")[2] not in AT_START)


def changes(old, new, more=()):
    """(settings to go on with, keys that take a restart) when a configuration becomes `new`; more: keys that do not."""
    before, after = flat(old.model_dump()), flat(new.model_dump())
    changed = [key for key in after if after[key] != before.get(key)]
    fixed = [key for key in changed if not (taken_at_once(key) or key in more)]
    settings = old.model_copy(deep=True)
    for key in changed:
        if key not in fixed:
            section, _, name = key.rpartition(".")
            setattr(_section(settings, section), name, getattr(_section(new, section), name))
    return settings, fixed


def _section(settings, path):
    for name in filter(None, path.split(".")):
        settings = getattr(settings, name)
    return settings


def params_of(settings, known, root):
    """Params rows of each enabled detector by its name."""
    running = config.chosen(settings, known)
    return {name: config.build_params(d, getattr(settings.detectors, name), root) for name, d in running.items()}
