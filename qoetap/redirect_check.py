"""What of the sections `serve` and `dns` must fit together: data centres, aggregation points, names of the DNS."""

from controlplane.dnsnames import labels_of
from controlplane.prefixes import Prefixes
from qoetap.keys import nearest_name


def check_redirection(settings):
    """ValueError with one sentence that names the key."""
    serve, dns = settings.serve, settings.dns
    for key, items in (("serve.aggregations", serve.aggregations), ("serve.data_centres", serve.data_centres)):
        require_once(key, [item.name for item in items])
    if serve.near > serve.hysteresis:
        raise ValueError(f"serve.near: {serve.near} is above serve.hysteresis, which is {serve.hysteresis}: lower it")
    check_prefixes(serve.aggregations)
    check_centres(serve)
    check_names(dns.names)


def require_once(key, names):
    seen = set()
    twice = next((name for name in names if name in seen or seen.add(name)), None)
    if twice is not None:
        raise ValueError(f"{key}: {twice} is there twice")


def check_prefixes(aggregations):
    """Each prefix belongs to one aggregation point; one within another is fine."""
    prefixes = Prefixes()
    for item in aggregations:
        for prefix in item.prefixes:
            try:
                prefixes.add(prefix, item.name)
            except KeyError as error:
                other = error.args[0]
                told = "is there twice" if other == item.name else f"belongs to {other} already"
                raise ValueError(f"serve.aggregations: {item.name}: prefixes: {prefix} {told}") from None


def check_centres(serve):
    """Data centres lead to aggregation points that there are, and each of these to a data centre."""
    known, reached = [item.name for item in serve.aggregations], set()
    for centre in serve.data_centres:
        place = f"serve.data_centres: {centre.name}"
        if not centre.addresses:
            raise ValueError(f"{place}: addresses: give at least one")
        for name in centre.paths:
            if name not in known:
                raise ValueError(f"{place}: paths: there is no aggregation {name!r}{nearest_name(name, known)}")
        reached |= centre.paths.keys()
    alone = next((name for name in known if name not in reached), None)
    if alone is not None:
        raise ValueError(f"serve.aggregations: {alone}: no data centre has a path to it")


def check_names(names):
    for item in names:
        try:
            labels_of(item.name)
        except ValueError as error:
            raise ValueError(f"dns.names: {item.name}: {error}") from None
        if not item.fallback:
            raise ValueError(f"dns.names: {item.name}: fallback: give at least one address")
    require_once("dns.names", [".".join(map(bytes.decode, labels_of(item.name))) for item in names])
