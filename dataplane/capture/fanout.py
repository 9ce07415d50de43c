"""Which worker gets a packet: a program that the kernel runs for each one (PACKET_FANOUT_CBPF).

All packets between two hosts go to one worker, whatever their ports: so a flow stays whole with its fragments, its
ICMP and its tunnels, and a sandwich with all its members. PTP, which talks to groups, goes to the first worker, and so
does what is not IP. The kernel's own hash parts a Sync from its Follow_Up, and a fragment from its flow.
"""

import re

# Two addresses of a packet, joined so that the direction does not matter. In the notation of the kernel's bpf_asm;
# [x+N] counts from the network header, `proto` is the ethertype without the tag that the kernel has taken out.
BY_PAIR = """
            ldx #0
            ld proto
            jeq #0x8100, tagged
            jeq #0x88a8, tagged
            jeq #0x9100, tagged
            ja untagged
tagged:     ldx #4
            ldh [x-2]
            jeq #0x8100, tagged2
            ja untagged
tagged2:    ldx #8
            ldh [x-2]
untagged:   jeq #0x0800, ipv4
            jeq #0x86dd, ipv6
            jeq #0x8864, pppoe
            jeq #0x8847, mpls
            ret #0

pppoe:      ldh [x+6]
            jeq #0x21, ppp
            jeq #0x57, ppp
            ret #0
ppp:        txa
            add #8
            tax
            ja version

mpls:       ldb [x+2]
            jset #1, bottom
            txa
            add #4
            tax
            ldb [x+2]
            jset #1, bottom
            txa
            add #4
            tax
            ldb [x+2]
            jset #1, bottom
            ret #0
bottom:     txa
            add #4
            tax
version:    ldb [x+0]
            rsh #4
            jeq #4, ipv4
            jeq #6, ipv6
            ret #0

ipv4:       stx M[0]
            ldb [x+9]
            jeq #17, udp4
            ja pair4
udp4:       ldh [x+6]
            jset #0x1fff, pair4
            ldb [x+0]
            and #15
            lsh #2
            add x
            tax
            ldh [x+2]
            jeq #319, first
            jeq #320, first
pair4:      ldx M[0]
            ld [x+12]
            st M[1]
            ld [x+16]
            ldx M[1]
            xor x
            ja spread

ipv6:       ldb [x+6]
            jeq #17, udp6
            ja pair6
udp6:       ldh [x+42]
            jeq #319, first
            jeq #320, first
pair6:      stx M[0]
            ld [x+8]
            {fold}
            ja spread

spread:     mul #0x9e3779b1
            rsh #16
            ret a
first:      ret #0
""".format(fold="".join(f"st M[1]\n ldx M[0]\n ld [x+{at}]\n ldx M[1]\n xor x\n" for at in range(12, 40, 4)))

NETWORK = -0x100000  # SKF_NET_OFF (linux/filter.h)
OPCODES = {  # linux/bpf_common.h; the operand's form tells which of a mnemonic's is meant
    "ld proto": 0x28, "ld [": 0x40, "ldh [": 0x48, "ldb [": 0x50, "ld #": 0x00, "ldx #": 0x01, "ldx M": 0x61,
    "st M": 0x02, "stx M": 0x03, "tax": 0x07, "txa": 0x87, "xor x": 0xAC, "add x": 0x0C, "add #": 0x04, "and #": 0x54,
    "lsh #": 0x64, "rsh #": 0x74, "mul #": 0x24, "jeq #": 0x15, "jset #": 0x45, "ja": 0x05, "ret #": 0x06,
    "ret a": 0x16,
}  # fmt: skip
PROTOCOL = -0x1000  # SKF_AD_OFF + SKF_AD_PROTOCOL
OPERAND = re.compile(r"#(\w+)|\[x([+-]\d+)\]|M\[(\d)\]")


def assemble(text):
    """Instructions (code, jt, jf, k) of a program in the notation above."""
    lines, labels = [], {}
    for line in filter(None, map(str.strip, text.splitlines())):
        label, colon, rest = line.rpartition(":")
        if colon:
            labels[label] = len(lines)
        lines.append(rest.strip())
    return [_instruction(line, at, labels) for at, line in enumerate(lines)]


def _instruction(line, at, labels):
    word, _, operand = line.partition(" ")
    operand, _, target = operand.partition(", ")
    code = next(code for form, code in OPCODES.items() if f"{word} {operand}".strip().startswith(form))
    if word == "ja":
        return code, 0, 0, labels[operand] - at - 1
    found = OPERAND.match(operand)
    k = PROTOCOL if operand == "proto" else 0
    if found:
        constant, offset, cell = found.groups()
        k = int(constant, 0) if constant else NETWORK + int(offset) if offset else int(cell)
    return code, labels[target] - at - 1 if target else 0, 0, k & 0xFFFFFFFF
