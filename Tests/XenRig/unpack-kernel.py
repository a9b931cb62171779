#!/usr/bin/env python3
"""unpack-kernel.py BZIMAGE OUTPUT: the ELF kernel inside a bzImage, so that no emulated processor
has to unpack it (Linux: Documentation/arch/x86/boot.rst, payload_offset and payload_length)."""
import gzip
import lzma
import struct
import subprocess
import sys

with open(sys.argv[1], "rb") as file:
    image = file.read()
sectors = image[0x1F1] or 4
offset, length = struct.unpack_from("<II", image, 0x248)
start = (sectors + 1) * 512 + offset
payload = image[start:start + length - 4]
(size,) = struct.unpack_from("<I", image, start + length - 4)
if payload[:6] == b"\xfd7zXZ\0":
    elf = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
elif payload[:2] == b"\x1f\x8b":
    elf = gzip.decompress(payload)
elif payload[:4] == b"\x28\xb5\x2f\xfd":
    elf = subprocess.run(["zstd", "-dc"], input=payload, stdout=subprocess.PIPE, check=True).stdout
else:
    sys.exit("unknown compression of the kernel: " + payload[:6].hex())
if elf[:4] != b"\x7fELF" or len(elf) != size:
    sys.exit("the kernel did not unpack")
with open(sys.argv[2], "wb") as file:
    file.write(elf)
