"""`qoetap live --top`: what it draws, without a terminal."""

from qoetap.top import Top

SNAPSHOT = {
    "uptime_seconds": 12.5,
    "healthy": False,
    "why": "https://[fe80::1]/in: 400 Bad; it says '[/b]'",
    "packets": {"seen": 1000},
    "interfaces": {"eth0": {"up": 1, "received": 700, "dropped": 30, "missed": 8}},
    "states": {"flow": {"live": 80, "created": 90, "emergency": 0}},
    "events": {"delivered": 1, "queued": 0, "dropped": 0},
}


def test_what_others_say_is_drawn_as_it_is():
    """A server's words once ended the agent: rich took them for markup."""
    top = Top()
    console = top.screen.console
    top.say(SNAPSHOT["why"])
    with console.capture() as page:
        for part in top.tables(SNAPSHOT, 1.0, 0):
            console.print(part)
    assert " ".join(page.get().split()).count(SNAPSHOT["why"]) == 2
