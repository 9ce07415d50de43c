"""The DNS server by itself: every byte string is replied to or dropped, and replies say what the RFCs want."""

import asyncio
import contextlib
import socket
import struct

import pytest
from dnslib import QTYPE, RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from controlplane import dnsmessage, redirect
from controlplane.dnscounts import RateLimit
from controlplane.dnsnames import labels_of
from controlplane.dnsserver import Item, Responder, Server, Settings, bind
from controlplane.redirect import Answer, Breaker, Memory, NoAnswer, Redirector
from tests.dns import addresses, ecs_of, opt, question, subnet

NAME = "video.example.com"
CHOSEN = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
FALLBACK = ("192.0.2.9", "2001:db8::9")
ITEM = Item("page", FALLBACK)
HOST = "198.51.100.7"


class AtHand:
    """A redirector that always knows; `asked` is for whom."""

    def __init__(self, addresses=CHOSEN):
        self.addresses, self.asked = addresses, []

    def at_hand(self, prefix, item):
        self.asked.append((prefix, item.content))
        return Answer(self.addresses, redirect.CACHE)


def responder(redirector=None, ecs=True, rate=10**9):
    items = {labels_of(NAME): ITEM, labels_of("V4.example"): Item("file", FALLBACK[:1])}
    return Responder(Settings(items, 5, ecs, rate), redirector or AtHand(), lambda: 0.0)


def reply(record, made=None, tcp=False, host=HOST):
    """The reply to a query, parsed; None if it was dropped."""
    data = (made or responder()).begin(record.pack() if isinstance(record, DNSRecord) else record, host, tcp)
    return data and DNSRecord.parse(data)


def rcode(record):
    extended = opt(record).edns_rcode << 4 if opt(record) else 0
    return extended | record.header.rcode


# --- what is asked and replied


@pytest.mark.parametrize(("kind", "found"), [("A", list(CHOSEN[:2])), ("AAAA", [CHOSEN[2]]), ("ANY", list(CHOSEN[:2]))])
def test_addresses_of_the_kind_that_is_asked_for(kind, found):
    asked = question(kind=kind, id=0x1234)
    got = reply(asked)
    assert addresses(got) == found and {rr.ttl for rr in got.rr} == {5}
    assert (got.header.id, got.header.aa, got.header.ra, got.header.rd, got.header.tc) == (0x1234, 1, 0, 1, 0)
    assert [rr.rname for rr in got.rr] == [NAME] * len(found) and got.q == asked.q


def test_a_reply_byte_for_byte():
    asked = bytes.fromhex("abcd01000001000000000000") + b"\x05viDeo\x07example\x03com\0" + bytes.fromhex("00010001")
    answers = b"".join(bytes.fromhex("c00c00010001000000050004") + bytes(map(int, a.split("."))) for a in CHOSEN[:2])
    assert responder().begin(asked, HOST, False) == bytes.fromhex("abcd85000001000200000000") + asked[12:] + answers


def test_names_match_in_any_case_and_keep_theirs():
    got = reply(question("ViDeO.eXample.COM"))
    assert got.q.qname.label == got.rr[0].rname.label == (b"ViDeO", b"eXample", b"COM")


@pytest.mark.parametrize("kind", ["MX", "TXT", "NS", "HTTPS", "CNAME"])
def test_other_kinds_have_no_data(kind):
    got = reply(question(kind=kind))
    assert (rcode(got), got.rr) == (0, [])
    assert [(rr.rtype, rr.rname, rr.rdata.times[4]) for rr in got.auth] == [(QTYPE.SOA, NAME, 5)]


def test_a_name_without_ipv6_has_no_data_for_it():
    got = reply(question("v4.example", "AAAA"), responder(AtHand(CHOSEN[:1])))
    assert (rcode(got), got.rr, got.auth[0].rtype) == (0, [], QTYPE.SOA)


def test_the_start_of_authority_is_an_answer():
    assert [rr.rtype for rr in reply(question(kind="SOA")).rr] == [QTYPE.SOA]


@pytest.mark.parametrize(
    "asked", [*map(question, ("example.com", "www." + NAME, ".")), question(kind="AXFR"), question(kind="IXFR")]
)
def test_what_is_not_ours_is_refused(asked):
    assert (rcode(reply(asked)), reply(asked).rr, reply(asked).auth) == (5, [], [])


def test_another_class_is_refused():
    asked = question()
    asked.q.qclass = 3  # Chaos
    assert rcode(reply(asked)) == 5


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 15])
def test_other_operations_are_not_implemented(opcode):
    got = reply(question(opcode=opcode))
    assert (rcode(got), got.header.opcode, got.header.q) == (4, opcode, 0)


def test_a_reply_is_not_replied_to():
    made = responder()
    assert reply(question(qr=1), made) is None and reply(b"\0" * 11, made) is None
    assert made.counts.dropped == {"response": 1, "short": 1} and made.counts.waiting == 0


# --- EDNS and Client Subnet


def test_edns_is_replied_to_with_edns():
    assert opt(reply(question())) is None
    got = opt(reply(question(edns={"flags": "do"})))
    assert (got.edns_len, got.edns_ver, got.edns_do, got.rdata) == (1232, 0, 1, [])
    assert rcode(reply(question(edns={"version": 1}))) == 16


@pytest.mark.parametrize(
    ("option", "prefix", "told"),
    [
        (subnet("10.1.2.0", 24), "10.1.2.0/24", (24, 24)),
        (subnet("10.1.2.77", 32), "10.1.2.0/24", (32, 24)),
        (subnet("10.0.0.0", 8), "10.0.0.0/8", (8, 24)),
        (subnet("10.1.2.0", 23), "10.1.2.0/23", (23, 24)),
        (subnet("2001:db8:1:200::", 56), "2001:db8:1:200::/56", (56, 56)),
        (subnet("2001:db8:1:2ff::1", 128), "2001:db8:1:200::/56", (128, 56)),
        (subnet("0.0.0.0", 0), "198.51.100.0/24", (0, 0)),  # does not want to be told apart
        (subnet("0.0.0.0", 0, family=0), "198.51.100.0/24", (0, 0)),
        (None, "198.51.100.0/24", None),
    ],
)
def test_the_prefix_that_counts(option, prefix, told):
    asked = AtHand()
    got = reply(question(ecs=option, edns={}), responder(asked))
    assert asked.asked == [(prefix, "page")] and ecs_of(got) == told and addresses(got) == list(CHOSEN[:2])


@pytest.mark.parametrize("option", [subnet("10.1.2.0", 24), b"malformed"])
def test_it_may_be_turned_off(option):
    asked = AtHand()
    got = reply(question(ecs=option), responder(asked, ecs=False))
    assert asked.asked == [("198.51.100.0/24", "page")] and ecs_of(got) is None


@pytest.mark.parametrize("kind", ["MX", "AAAA"])
def test_what_does_not_depend_on_the_user_says_so(kind):
    got = reply(question("v4.example", kind, ecs=subnet("10.1.2.0", 24)), responder(AtHand(CHOSEN[:1])))
    assert (got.rr, ecs_of(got)) == ([], (24, 0))


@pytest.mark.parametrize(
    "option",
    [
        b"\0\1\x18", subnet("10.1.2.0", 24)[:-1], subnet("10.1.2.0", 24) + b"\0", subnet("10.1.2.0", 24, scope=1),
        subnet("10.1.3.0", 23), subnet("10.1.2.0", 24, family=3), subnet("10.1.2.0", 24, family=0),
        b"\0\1\x21" + b"\0" * 6, b"\0\2\x81" + b"\0" * 18,
    ],
)  # fmt: skip
def test_a_malformed_subnet_is_an_error(option):
    asked = AtHand()
    assert rcode(reply(question(ecs=option), responder(asked))) == 1 and not asked.asked


def test_two_options_records_are_an_error():
    asked = question(edns={})
    asked.add_ar(opt(question(edns={})))
    assert rcode(reply(asked)) == 1


# --- sizes and rates


@pytest.mark.parametrize(("edns", "limit"), [(None, 512), ({"udp_len": 100}, 512), ({"udp_len": 4096}, 1232)])
def test_a_reply_that_is_too_large_comes_over_tcp(edns, limit):
    many = AtHand([f"192.0.2.{n}" for n in range(100)])
    data = responder(many).begin(question(edns=edns).pack(), HOST, False)
    cut = DNSRecord.parse(data)
    assert len(data) <= limit and cut.header.tc == 1 and cut.rr == [] and cut.q.qname == NAME
    assert addresses(reply(question(edns=edns), responder(many), tcp=True)) == list(many.addresses)


def test_who_asks_too_often_is_told_to_come_over_tcp():
    made = responder(rate=3)
    found = [reply(question(), made) for _ in range(5)]
    assert [(got.header.tc, len(got.rr)) for got in found] == [(0, 2)] * 3 + [(1, 0)] * 2
    assert len(reply(question(), made, tcp=True).rr) == len(reply(question(), made, host="203.0.113.1").rr) == 2
    assert made.counts.replied == {"NOERROR": 5, "TC": 2} and made.counts.waiting == 0


def test_tokens_come_back_and_memory_is_bounded():
    limit = RateLimit(2, size=10)
    assert [limit.allows("a", now) for now in (0.0, 0.0, 0.0, 0.5, 0.5, 9.0, 9.0, 9.0)] == [1, 1, 0, 1, 0, 1, 1, 0]
    assert all(limit.allows(f"{n}", 9.0) for n in range(100)) and len(limit.buckets) == 10


# --- anything at all


def checked(packet, tcp=False):
    """What a packet leads to: a reply that is one, and no longer than it may be; or nothing. Always counted."""
    made = responder()
    got = made.begin(packet, HOST, tcp)
    assert made.counts.waiting == 0 and made.counts.received.total() == 1
    if got is None:
        return None
    assert got[:2] == packet[:2] and got[2] & 0x80 and len(got) <= (65535 if tcp else 1232)
    return DNSRecord.parse(got)


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes(packet, tcp):
    checked(packet, tcp)


@given(st.binary(max_size=300), st.integers(0, 3), st.integers(0, 5))
def test_any_bytes_behind_a_header_of_a_query(body, questions, additional):
    checked(struct.pack("!6H", 7, 0x0100, questions, 0, 0, additional) + body)


WHOLE = question(ecs=subnet("10.1.2.0", 24)).pack()


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6), st.integers(0, len(WHOLE)))
def test_a_query_with_bytes_changed_and_cut(changes, size):
    packet = bytearray(WHOLE)
    for at, value in changes:
        packet[at] = value
    checked(bytes(packet[:size]))


@pytest.mark.parametrize(
    "name", [b"\xc0\x0c", b"\xc0\xff", (b"\x3f" + b"a" * 63) * 5 + b"\0", b"\x41" + b"a" * 65 + b"\0", b"\3\xff\xfea\0"]
)
def test_names_that_are_none(name):
    """To themselves, ahead, too long, a label too long, no text."""
    assert rcode(checked(struct.pack("!6H", 7, 0, 1, 0, 0, 0) + name + b"\0\1\0\1")) == 1


@pytest.mark.parametrize(("last", "told"), [("a", 5), ("ab", 1)])
def test_the_longest_name(last, told):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in (*"a" * 126, last)) + b"\0"
    assert rcode(checked(struct.pack("!6H", 7, 0, 1, 0, 0, 0) + labels + b"\0\1\0\1")) == told


def test_names_of_a_thousand_pointers():
    start = 12 + 5 + 11
    chain = b"".join(struct.pack("!BBH", 1, 97, 0xC000 | max(12, at - 4)) for at in range(start, 4000, 4))
    record = struct.pack("!BHHIH", 0, 10, 1, 0, len(chain)) + chain
    last = struct.pack("!H", 0xC000 | start + len(chain) - 4) + b"\0\1\0\1\0\0\0\0\0\0"
    assert rcode(checked(struct.pack("!6H", 7, 0, 1, 0, 0, 4) + b"\0\0\1\0\1" + record + last * 3)) == 1


def test_a_query_of_more_than_a_query_needs():
    assert rcode(checked(question().pack() + b"\0" * 5000)) == 1


def test_answers_in_a_query_are_an_error():
    asked = question()
    asked.add_answer(RR(NAME, rdata=A("192.0.2.1")))
    assert rcode(checked(asked.pack())) == 1


@pytest.mark.parametrize("name", ["", ".", "a..b", "ä.example", "a" * 64 + ".example", "a." * 127 + "bc"])
def test_names_that_nobody_can_ask_for(name):
    with pytest.raises(ValueError, match="is no domain name"):
        labels_of(name)


# --- with and without the service


class Service:
    """What is asked. reply: addresses, None, or an exception; gate: what each question waits for."""

    def __init__(self, reply=CHOSEN):
        self.reply, self.asked, self.gate = reply, [], None

    async def __call__(self, prefix, content):
        self.asked.append((prefix, content))
        if self.gate:
            await self.gate.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told(service, clock):
    """told(prefix): origin and first address of the answer, asked as the server does."""
    redirector = Redirector(service, 0.05, clock)

    async def answer(prefix):
        found = redirector.at_hand(prefix, ITEM) or await redirector.answer(prefix, ITEM)
        return found.origin, found.addresses[0]

    return lambda prefix="10.1.2.0/24": asyncio.run(answer(prefix))


def test_an_answer_is_remembered_for_a_moment(told, service, clock):
    assert [told(), told()] == [("service", CHOSEN[0]), ("cache", CHOSEN[0])] and len(service.asked) == 1
    clock.now += redirect.FRESH_seconds
    assert told()[0] == "service" and told("10.1.3.0/24")[0] == "service"


def test_a_user_of_no_aggregation_point_gets_the_fallback(told, service):
    service.reply = None
    assert told() == told() == ("fallback", FALLBACK[0]) and len(service.asked) == 1


def test_without_the_service_the_last_answer_and_then_the_fallback(told, service, clock):
    told()
    service.reply = NoAnswer("down")
    clock.now += redirect.FRESH_seconds
    assert told() == ("last_good", CHOSEN[0]) and told("10.9.0.0/24") == ("fallback", FALLBACK[0])
    clock.now += redirect.KEPT_seconds
    assert told() == ("fallback", FALLBACK[0])


@pytest.mark.parametrize("failure", [NoAnswer("down"), OSError(), ValueError()])
def test_a_service_that_is_down_is_asked_now_and_then(told, service, clock, failure):
    service.reply = failure
    origins = [told()[0] for _ in range(50)]
    assert origins == ["fallback"] * 50 and len(service.asked) == redirect.FAILURES
    clock.now += redirect.REST_seconds
    told(), told()
    assert len(service.asked) == redirect.FAILURES + 1
    service.reply = CHOSEN
    assert told()[0] == "fallback"
    clock.now += redirect.REST_seconds
    assert told()[0] == "service" and told("10.1.3.0/24")[0] == "service"


def test_a_service_that_is_late_is_not_waited_for(told, service):
    service.gate = asyncio.Event()
    assert told() == ("fallback", FALLBACK[0])


def test_those_that_ask_the_same_ask_once(service, clock):
    async def many():
        service.gate = asyncio.Event()
        redirector = Redirector(service, 5.0, clock)
        tasks = [asyncio.ensure_future(redirector.answer("10.1.2.0/24", ITEM)) for _ in range(20)]
        while not service.asked:
            await asyncio.sleep(0)
        tasks[0].cancel()  # one who goes away takes nothing from the others
        service.gate.set()
        return await asyncio.gather(*tasks[1:])

    assert {found.addresses for found in asyncio.run(many())} == {CHOSEN} and len(service.asked) == 1


def test_the_breaker_opens_after_failures_in_a_row():
    breaker = Breaker()
    for _ in range(redirect.FAILURES - 1):
        breaker.note(False, 0.0)
    breaker.note(True, 0.0)
    breaker.note(False, 0.0)
    assert breaker.allows(0.0)
    for _ in range(redirect.FAILURES):
        breaker.note(False, 10.0)
    assert [breaker.allows(now) for now in (10.0, 10.9, 11.0, 11.1)] == [False, False, True, False]


def test_memory_is_bounded_and_keeps_what_was_used_last():
    memory = Memory(3)
    for key in "abca" + "d":
        memory.put(key, key, 0.0)
    assert [memory.get(key, 0.0, 1.0) for key in "abcd"] == [("a",), (), ("c",), ("d",)]


def test_too_many_that_wait_are_answered_without_the_service(monkeypatch):
    monkeypatch.setattr("controlplane.dnsserver.WAITING_MAX", 2)

    async def flood():
        service = Service()
        service.gate = asyncio.Event()
        made = responder(Redirector(service, 5.0, Clock()))
        begun = [made.begin(question().pack(), f"203.0.{n}.1", False) for n in range(4)]
        waiting = [asyncio.ensure_future(one) for one in begun if asyncio.iscoroutine(one)]
        service.gate.set()
        return made, [one for one in begun if isinstance(one, bytes)], await asyncio.gather(*waiting)

    made, at_once, later = asyncio.run(flood())
    assert (len(at_once), len(later)) == (2, 2) and made.counts.waiting == 0
    assert {addresses(DNSRecord.parse(data))[0] for data in at_once} == {FALLBACK[0]}
    assert made.counts.origins == {"fallback": 2, "service": 2}
    assert dnsmessage.EDNS_bytes == 1232


def test_who_does_not_read_is_cut_off(monkeypatch):
    """What was written for him is thrown away: else each such connection would stay for good."""
    monkeypatch.setattr("controlplane.dnsserver.IDLE_seconds", 0.05)
    asked = question().pack()

    async def attack():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        server = Server(responder(AtHand([f"192.0.2.{n}" for n in range(200)])))
        serve, pair = server.streams.serve, bind(socket.AF_INET, ("127.0.0.1", 0))

        async def noted(reader, writer):
            await serve(reader, writer)
            ended.set_result(writer)

        server.streams.serve = noted
        await server.start([pair])
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, pair[1].getsockname())
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, (len(asked).to_bytes(2) + asked) * 10_000)
            writer = await ended
            await asyncio.sleep(0)  # it is closed when the loop comes to it
            left = writer.get_extra_info("socket").fileno()
            await server.stop()
        return left

    assert asyncio.run(attack()) == -1
