#!/usr/bin/env python3
"""module-order.py DIRECTORY NAME...: the files of kernel modules and of those they need, in the
order in which they must be loaded. A name without a file is built into the kernel."""
import os
import re
import sys

files = {}
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        if name.endswith(".ko"):
            files[name[:-3].replace("-", "_")] = os.path.join(folder, name)
done = []


def visit(name):
    path = files.get(name.replace("-", "_"))
    if path is None or path in done:
        return
    with open(path, "rb") as file:
        found = re.search(rb"\0depends=([^\0]*)\0", b"\0" + file.read())
    for other in found.group(1).decode().split(",") if found else []:
        if other:
            visit(other)
    done.append(path)


for name in sys.argv[2:]:
    visit(name)
print("\n".join(done))
