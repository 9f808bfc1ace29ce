#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`gasp.py FOLDER`: takes the datagrams of a kernel that dies (struct fp8guard_gasp_datagram in driver/fp8guard_uapi.h) and checks them; its port is in FOLDER/port."""
import hashlib
import hmac
import os
import socket
import struct
import sys
import time

FORM = struct.Struct(">8sQ64s40s136s32s")
KEY = b"\x42" * 32  # tests/vm/guard.c


def text(field):
    return field.split(b"\0")[0].decode()


def take(data):
    """(node, boot id, reason); an exception says what is wrong."""
    if len(data) != FORM.size:
        raise ValueError(f"{len(data)} bytes, expected {FORM.size}")
    magic, _, node, boot, reason, mac = FORM.unpack(data)
    if magic != b"FP8GASP1":
        raise ValueError(f"begins with {magic}")
    if not hmac.compare_digest(mac, hmac.new(KEY, data[:-32], hashlib.sha256).digest()):
        raise ValueError("the signature is wrong")
    return text(node), text(boot), text(reason)


def main():
    folder = sys.argv[1]
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    s.settimeout(170)
    with open(folder + "/port.new", "w") as f:
        f.write(str(s.getsockname()[1]))
    os.rename(folder + "/port.new", folder + "/port")
    data = s.recv(2048)
    at = time.time()
    words = take(data)
    if words != ("node-7", "a-boot", "sysrq triggered crash"):
        sys.exit(f"found {words}")
    s.settimeout(3)
    copies = 1
    while copies < 3:
        if take(s.recv(2048)) != words:
            sys.exit("the copies differ")
        copies += 1
    for at_byte in (0, 20, FORM.size - 40):
        forged = bytearray(data)
        forged[at_byte] ^= 1
        try:
            take(bytes(forged))
        except ValueError:
            continue
        sys.exit(f"a datagram with byte {at_byte} changed was taken")
    asked = os.stat(folder + "/last").st_mtime
    print(f"FIGURE: {copies} signed datagrams of a kernel that died ({words[2]}), the first {(at - asked) * 1e3:.0f} ms after it was asked to")


if __name__ == "__main__":
    main()
