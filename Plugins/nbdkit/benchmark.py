"""Times reads of a disk through NBD: the plugin varve against nbdkit's plugin file, in turn.

python3 benchmark.py PLUGIN VARVE DIRECTORY [MIB]: the plugin (built by `build`), the tool, an empty
directory with room for three times the disk, and the disk's size (1024). A third of the disk is
holes, a quarter cannot be compressed, and the rest is text. Cold reads need root.
"""

import os
import random
import statistics
import subprocess
import sys
import time

import nbd

from programs import run

PAGE = 4096
ROUNDS = 5
plugin, tool, work = sys.argv[1:4]
size = int(sys.argv[4]) << 20 if len(sys.argv) > 4 else 1 << 30
image, store = f"{work}/disk.img", f"{work}/store"


def create():
    chance = random.Random(1)
    words = [b"%06x is a word of a text; " % chance.randrange(1 << 24) for _ in range(4000)]
    with open(image, "wb") as file:
        for _ in range(size // PAGE):
            kind = chance.random()
            if kind < 0.35:
                file.seek(PAGE, 1)
            elif kind < 0.6:
                file.write(chance.randbytes(PAGE))
            else:
                file.write(b"".join(chance.choices(words, k=160))[:PAGE])
        file.truncate(size)
    run(tool, "init", store)
    run(tool, "import", store, "--lineage", "disk", "--volume", f"xvda={image}")


class Server:
    def __init__(self, *words):
        self.socket = f"{work}/socket"
        self.process = subprocess.Popen(["nbdkit", "-f", "-U", self.socket, *words])
        while not os.path.exists(self.socket):
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def peak(self):
        """MiB of memory at most: what is its own, and what it has mapped of the repository."""
        with open(f"/proc/{self.process.pid}/status") as file:
            values = dict(line.split(":", 1) for line in file)
        return int(values["VmHWM"].split()[0]) // 1024, int(values["RssAnon"].split()[0]) // 1024


def sequential(server, export):
    """Seconds of nbdcopy to nowhere, from a cold page cache."""
    run("sync")
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
    start = time.monotonic()
    run("nbdcopy", f"nbd+unix:///{export}?socket={server.socket}", "null:")
    return time.monotonic() - start


def latencies(server, export):
    """Microseconds of reads of 4 KiB at random places, one after the other, read once before."""
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///{export}?socket={server.socket}")
    chance = random.Random(2)
    offsets = [chance.randrange(size // PAGE) * PAGE for _ in range(5000)]
    for offset in offsets:
        handle.pread(PAGE, offset)
    times = []
    for offset in offsets:
        start = time.perf_counter()
        handle.pread(PAGE, offset)
        times.append((time.perf_counter() - start) * 1e6)
    handle.shutdown()
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


def main():
    create()
    kinds = {"file": (["file", image], ""), "varve": ([plugin, f"store={store}"], "disk%2Fxvda")}
    seconds, times, peaks = ({kind: [] for kind in kinds} for _ in range(3))
    for _ in range(ROUNDS):
        for kind, (words, export) in kinds.items():
            with Server(*words) as server:
                seconds[kind].append(sequential(server, export))
                times[kind].append(latencies(server, export))
                peaks[kind].append(server.peak())
    for kind in kinds:
        middle = statistics.median(seconds[kind])
        p50, p99 = (statistics.median(each[i] for each in times[kind]) for i in (0, 1))
        most, own = (max(each[i] for each in peaks[kind]) for i in (0, 1))
        print(f"{kind:5}  sequential, cold: {size / middle / (1 << 20):6.0f} MiB/s   "
              f"4 KiB at random, warm: p50 {p50:5.1f} us, p99 {p99:6.1f} us   memory: {most} MiB, {own} its own")
    ratios = [b / a for a, b in zip(seconds["varve"], seconds["file"])]
    print(f"varve reads {statistics.median(ratios):.2f} times as fast as file, sequentially "
          f"({min(ratios):.2f} to {max(ratios):.2f}, {ROUNDS} pairs)")


main()
