"""`qoetap check` and `qoetap schema`: what a configuration means, and what events look like."""

import json
import sys

import yaml

import detectors as registry
from qoetap import config
from qoetap.exits import DONE, USAGE, Exit


def check(args):
    """Print ok, or leave with the sentence about the first thing that is wrong."""
    known = registry.load_all()
    if args.defaults:
        sys.stdout.write(config.document(known))
        return DONE
    path = args.path or args.config
    if not path and not args.set:
        raise Exit(USAGE, "name a configuration, or ask for --defaults")
    layers = [config.read_file(path)] if path else []
    settings = config.load(layers + [config.assignment(text) for text in args.set], known)
    values = config.as_values(settings, known)
    if args.json:
        print(json.dumps(values, indent=1))
        return DONE
    print("ok")
    if args.verbose:
        yaml.safe_dump(values, sys.stdout, sort_keys=False, width=120)
    return DONE


def schema(_args):
    """Print the JSON Schema of every detector's events, and of those that an agent makes of itself."""
    from dataplane.events import json_schema
    from qoetap.inline_events import MITIGATION, PACE
    from qoetap.stats import STATS

    print(json.dumps(json_schema([*registry.load_all().values(), STATS, PACE, MITIGATION]), indent=1))
    return DONE
