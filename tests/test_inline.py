"""`qoetap inline` as a process on a real router: what passes, how fast, and that the network outlives it."""

import math
import signal
import socket
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from numba import njit
from test_control import ask
from test_street import udp
from test_stretch import Sizes

from dataplane.capture.nfqueue import SLOTS, TABLE, Queues, counts_of
from dataplane.classify import new_classifier, new_rules
from dataplane.engine import Engine
from dataplane.pacing import new_classes, new_pacer
from dataplane.records import CHECKED
from dataplane.shim import Shim
from dataplane.wire import decode_options
from detectors import load_all
from qoetap import firewall
from qoetap.config import build_params, detector_model
from qoetap.exits import PRIVILEGE, USAGE
from qoetap.street import RECEIVER, SENDER
from tests.live import Agent, wait_until

pytestmark = pytest.mark.skipif(CHECKED, reason="inline is compiled only")

PACED, FREE, SIZE, RATE = 9000, 9100, 500, 400_000  # bytes of an IP packet; bit/s: 100 packets a second
HEADERS_bytes = 28
CLASSES = f"""
inline:
  control: unix:FOLDER/control
  stats_every: 1s
  classes:
    - {{name: paced, match: {{proto: udp, dport: {PACED}}}, rate: {RATE}, limit_time: 500ms}}
    - {{name: fast, match: {{verdict: icmp.rtt}}, set_mark: 7}}
  mitigation:
    - {{on: icmp.rtt, do: priority, class: fast, hold: 2s, quiet: 0s}}
"""
SLOW = CLASSES.replace(f"rate: {RATE}", f"rate: {RATE // 10}").replace("500ms", "10s")  # holds long
NEVER_LATE = ("--set", "inline.delay_bound=0s")  # also on a busy machine nothing passes by


@pytest.fixture
def start(street, tmp_path):
    """Starts `qoetap inline` on the router; what it leaves behind in the firewall goes."""
    config = tmp_path / "site.yaml"
    config.write_text(CLASSES.replace("FOLDER", str(tmp_path)))

    def begin(*options, install=True, text=None, **keywords):
        if text is not None:
            config.write_text(text.replace("FOLDER", str(tmp_path)))
        words = ["inline", "-q", "5", *(["--install"] if install else []), "-c", config]
        keywords = {"detectors": "flow,icmp_loop", "heard": "TERM or INT ends it", "ask": words} | keywords
        return Agent(street.router, tmp_path, *options, **keywords)

    yield begin
    street.router.inside(firewall.uninstall)


class Way:
    """Two sockets, to one class and to none."""

    def __init__(self, street, family="ipv4"):
        self.mouth = udp(street.sender, SENDER, family)
        self.ears = {port: udp(street.receiver, RECEIVER, family, port) for port in (PACED, FREE)}
        self.to = getattr(RECEIVER, family)
        for ear in self.ears.values():
            ear.setblocking(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sock in (self.mouth, *self.ears.values()):
            sock.close()

    def say(self, port, count):
        """Send so many; how many packets of the class go by meanwhile."""
        begun = time.monotonic()
        for i in range(count):
            self.mouth.sendto(i.to_bytes(4, "big") + bytes(SIZE - HEADERS_bytes - 4), (self.to, port))
        return math.ceil((time.monotonic() - begun) * RATE / (8 * SIZE))

    def heard(self, port):
        """Numbers of what has arrived."""
        found = []
        while True:
            try:
                found.append(int.from_bytes(self.ears[port].recv(2000)[:4], "big"))
            except BlockingIOError:
                return found

    def arrives(self, port, count):
        """That so many arrive, in order."""
        found = []
        wait_until(lambda: found.extend(self.heard(port)) or len(found) >= count)
        assert found == sorted(found) and len(found) == count


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_class_is_paced_and_nothing_else(street, start, family):
    with start(*NEVER_LATE) as run, Way(street, family) as way:
        begun = time.monotonic()
        way.say(PACED, 40)
        way.say(FREE, 100)
        way.arrives(FREE, 100)
        way.arrives(PACED, 40)
        assert 0.38 < time.monotonic() - begun < 4  # 39 packets at 100 a second; a tenth of the rate would take longer
        ended = run.end()
    assert ended.status == 0, ended.err
    assert ended.stats["classes"]["paced"]["released"] == 39
    assert ended.stats["classes"]["default"]["passed"] >= 100
    assert street.router.inside(firewall.leftovers) == []


def test_more_than_a_class_may_hold_is_dropped_and_counted(street, start):
    with start(*NEVER_LATE) as run, Way(street) as way:
        meanwhile = way.say(PACED, 100)
        heard = []
        wait_until(lambda: heard.extend(way.heard(PACED)) or len(heard) >= 45)
        paced = run.end().stats["classes"]["paced"]
        heard += way.heard(PACED)
    assert 45 <= len(heard) <= 55 + meanwhile  # half a second's worth
    assert paced["packets"] == 100 == len(heard) + paced["over_time"]


BACKLOG, BUSY = 40_000, CLASSES.replace(f"rate: {RATE}", "rate: 300Mbit").replace("500ms", "10s, limit_bytes: 64MiB")


def test_who_waits_for_nothing_is_not_kept_waiting_by_a_backlog(street, start, tmp_path):
    """Of 75 thousand packets a second one is always due; a packet of no class is received while they leave."""
    with start(*NEVER_LATE, text=BUSY) as run, Way(street) as way:
        for _ in range(5):  # where the sender is the slower one there is no backlog
            way.say(PACED, BACKLOG)
            way.say(FREE, 1)
            way.arrives(FREE, 1)
            if class_told(tmp_path, "paced")["held"]:
                break
        else:
            pytest.fail("nothing was held any more, each time")
        assert run.end().status == 0


def class_told(folder, name):
    """What the API tells of a class."""
    api = SimpleNamespace(address=f"unix:{folder}/control")
    return next(c for c in ask(api, "/v1/classes").body["classes"] if c["name"] == name)


def test_rates_by_the_api_and_their_lease(street, start, tmp_path):
    with start(*NEVER_LATE) as run, Way(street) as way:
        api = SimpleNamespace(address=f"unix:{tmp_path}/control")
        answer = ask(api, "/v1/rates", "PUT", {"version": 1, "lease_s": 2, "rates": {"paced": 10 * RATE}})
        assert answer.status == 200 and answer.body["changed"] == 1
        way.say(PACED, 100)
        way.arrives(PACED, 100)  # a class of the rate before would drop half of them
        assert ask(api, "/v1/rates", "PUT", {"version": 1, "lease_s": 1, "rates": {}}).status == 409
        assert ask(api, "/v1/rates", "PUT", {"version": 2, "lease_s": 1, "rates": {"pacd": 1}}).status == 422
        run.hear("the lease")
        changed = run.wait_for(2, "pace.rate_changed")
        assert [(e["pace"]["old_bps"], e["pace"]["new_bps"]) for e in changed] == [
            (RATE, 10 * RATE), (10 * RATE, RATE),
        ]  # fmt: skip
        classes = {c["name"]: c for c in ask(api, "/v1/classes").body["classes"]}
        assert classes["paced"]["rate"] == RATE and classes["paced"]["packets"] == 100
        assert run.end().status == 0


def test_what_is_held_goes_at_the_end(street, start):
    with start(*NEVER_LATE, text=SLOW) as run, Way(street) as way:
        way.say(PACED, 40)
        wait_until(lambda: way.heard(PACED))
        ended = run.end()
        assert ended.status == 0
        assert ended.stats["classes"]["paced"]["flushed"] > 0
        assert ended.stats["classes"]["paced"]["flushed"] + ended.stats["classes"]["paced"]["released"] == 39


def waiting(street):
    """Packets that wait in the router's queue."""
    return street.router.inside(lambda: counts_of(TABLE.read_text()))[5].waiting


def test_a_kill_loses_what_was_held_and_no_more(street, start):
    """Stopped first, so that the kernel can be asked how many wait."""
    with start() as run, Way(street) as way:
        way.say(PACED, 40)
        wait_until(lambda: waiting(street) < 40)
        run.send(signal.SIGSTOP)
        way.say(FREE, 30)
        held = wait_until(lambda: (count := waiting(street)) >= 30 and count)
        run.send(signal.SIGKILL)
        run.process.wait()
        way.say(FREE, 50)
        way.arrives(FREE, 50)
        assert held > 30 and len(way.heard(PACED)) == 40 + 30 - held
        assert street.router.inside(firewall.leftovers)
        command = street.router.command(sys.executable, "-m", "qoetap", "inline", "--uninstall")
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "qoetap:5" in done.stdout and "rules taken out" in done.stderr
        assert street.router.inside(firewall.leftovers) == []


def test_stopped_it_holds_what_the_queue_holds_and_catches_up(street, start):
    with start(*NEVER_LATE) as run, Way(street) as way:
        run.stop()
        way.say(FREE, 100)
        time.sleep(0.2)
        assert way.heard(FREE) == []
        run.send(signal.SIGCONT)
        way.arrives(FREE, 100)
        assert run.end().status == 0


def test_too_late_everything_passes_by(street, start):
    """After a stop, what was due long ago says that we are slow."""
    with start("--set", "inline.delay_bound=50ms", text=SLOW) as run, Way(street) as way:
        way.say(PACED, 20)
        wait_until(lambda: way.heard(PACED))
        run.stop()
        time.sleep(0.4)
        run.send(signal.SIGCONT)
        run.hear("everything passes by")
        way.say(PACED, 40)
        heard = []
        wait_until(lambda: heard.extend(way.heard(PACED)) or len(heard) >= 40)
        ended = run.end()
    assert ended.status == 0, ended.err
    assert ended.stats["classes"]["paced"]["packets"] < 60  # of as many, those that did not pass by


REWRITING = f"""
inline:
  classes:
    - {{name: paced, match: {{proto: udp, dport: {PACED}}}, rate: {RATE}, ecn: true, ecn_time: 100ms, limit_time: 1s}}
    - {{name: marked, match: {{proto: udp, dport: {FREE}}}, set_dscp: ef}}
"""
ECT0, CE, EF = 2, 3, 46
RECVTOS, RECVTCLASS = (socket.IPPROTO_IP, 13), (socket.IPPROTO_IPV6, 66)  # linux/in.h, linux/in6.h


def traffic_classes(ear):
    """ToS or traffic class of each packet that has arrived."""
    found = []
    while True:
        try:
            _, told, *_ = ear.recvmsg(2000, 100)
        except BlockingIOError:
            return found
        found.append(int.from_bytes(told[0][2][:4], "little"))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_bytes_are_rewritten_also_of_what_is_held(street, start, family):
    """The DSCP of one class; in the other, CE once a packet would wait for a tenth of a second."""
    with start(*NEVER_LATE, text=REWRITING) as run, Way(street, family) as way:
        option = (socket.IPPROTO_IP, socket.IP_TOS) if family == "ipv4" else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        way.mouth.setsockopt(*option, ECT0)
        for ear in way.ears.values():
            ear.setsockopt(*(RECVTOS if family == "ipv4" else RECVTCLASS), 1)
        way.say(FREE, 5)
        meanwhile = way.say(PACED, 40)
        found = {PACED: [], FREE: []}
        wait_until(
            lambda: [found[port].extend(traffic_classes(way.ears[port])) for port in found]
            and len(found[PACED]) == 40 and len(found[FREE]) == 5
        )  # fmt: skip
        ended = run.end()
    assert ended.status == 0, ended.err
    assert found[FREE] == [EF << 2 | ECT0] * 5
    early, late = found[PACED][:9], found[PACED][13 + meanwhile :]
    assert set(early) == {ECT0} and set(late) == {CE}
    assert ended.stats["classes"]["paced"]["marked"] == found[PACED].count(CE)


def ping(street, count):
    """Echo requests from one end to the other, each answered."""
    with street.sender.inside(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(5)
        for number in range(count):
            words = struct.pack(">BBHHH", 8, 0, 0, 7, number)
            total = 0xFFFF - (0x0800 + 7 + number)
            sock.sendto(words[:2] + total.to_bytes(2, "big") + words[4:], (str(RECEIVER.ipv4), 0))
            sock.recv(100)


def test_a_flow_of_which_an_event_speaks_gets_its_class(street, start):
    """An answered ping is the event; the flow's packets are then of the class `fast`, until the hold is over."""
    with start() as run:
        ping(street, 1)
        (begun,) = run.wait_for(1, "mitigation.start")
        assert begun["mitigation"]["on"] == "icmp.rtt" and begun["mitigation"]["do"] == "priority"
        ping(street, 4)
        run.wait_for(1, "mitigation.end")
        ping(street, 1)
        ended = run.end()
    assert ended.status == 0, ended.err
    assert ended.stats["classes"]["fast"]["packets"] in (8, 9)  # the first reply may be of it already


@njit
def stumble(pkt, state, event, params):
    if pkt.len == SIZE:
        raise ValueError("broken")
    state.due = pkt.clock + 1_000_000_000
    return 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_detector_that_fails_costs_no_packet(street, start):
    """Its tile is let through, what comes after goes its way."""
    broken = load_all()["flow"]._replace(name="stumbler", step=stumble, silent=False)
    params = build_params(broken, detector_model(broken)())
    engine = Engine([(broken, params, 64)], Sizes(), decode_options(b"x"), 1, SLOTS)
    shim = Shim(new_pacer(new_classes(1), 16), new_classifier(new_rules(0)))
    street.router.inside(firewall.install, [firewall.Rule(5)])
    queues = street.router.inside(Queues, [5])
    with Way(street) as way:
        shim.attach(queues)
        way.say(FREE, 20)
        failed = heard = 0
        while heard < 20:
            shim.turn()
            try:
                engine.go_on(shim.stretch)
            except RuntimeError:
                failed += shim.pardon()
                engine.give_up(shim.tile_frames)
            shim.leave_tile()
            heard += len(way.heard(FREE))
    queues.close()
    assert failed == 20 == engine.seen - int(shim.pacer.classes[0].packets)


def test_a_queue_that_is_taken(street, start):
    with start() as first:
        command = street.router.command(sys.executable, "-m", "qoetap", "inline", "-q", "5")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == USAGE and f"queue 5 is taken by process {first.pid}" in done.stderr


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("inline: {}\n", (), None),
        ("inline: {classes: [{name: a, match: {}, rate: 0}]}\n", (), "rate"),
        ("inline: {classes: [{name: a, match: {}}, {name: b, match: {proto: udp}}]}\n", (), "b is never reached"),
        (
            "inline: {classes: [{name: a, match: {in: nowhere0}, rate: 1Mbit}]}\n",
            (),
            "there is no interface 'nowhere0'",
        ),
    ],
)
def test_a_configuration_that_is_wrong(street, tmp_path, text, options, sentence):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    words = ["inline", *(["-q", "5"] if sentence else []), "-c", path, *options]
    command = street.router.command(sys.executable, "-m", "qoetap", *words)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == USAGE and (sentence or "name a queue") in done.stderr
    assert done.stderr.splitlines()[-1].startswith("qoetap: ") and "Traceback" not in done.stderr


def test_without_privilege(street, tmp_path):
    """Of the user whose kernels are compiled already; what the kernel asks for is the capability."""
    words = [sys.executable, "-m", "qoetap", "inline", "-q", "5"]
    command = street.router.command("setpriv", "--bounding-set=-all", "--inh-caps=-all", *words)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == PRIVILEGE and "CAP_NET_ADMIN" in done.stderr
