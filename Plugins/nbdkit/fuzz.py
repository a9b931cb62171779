"""Hostile clients of the plugin, and hostile repositories behind it.

python3 fuzz.py PLUGIN VARVE DIRECTORY SECONDS: the plugin, the tool, an empty directory, and how
long. VARVE_SEED repeats a run, as far as threads allow.

The server must neither crash nor hang; a well-behaved client beside the hostile ones must read what
is right; and of a damaged repository no byte may be wrong: a read gives the right bytes or fails.
"""

import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time

import nbd

from programs import run

PAGE = 4096
plugin, tool, work = sys.argv[1:4]
seconds = float(sys.argv[4])
seed = int(os.environ.get("VARVE_SEED") or random.randrange(1 << 32))
chance = random.Random(seed)
store, image = f"{work}/store", f"{work}/disk.img"
counts = {"clients": 0, "repositories": 0, "right": 0, "failed": 0, "refused": 0}


def stop(what):
    print(f"nbdkit: failed: {what} (VARVE_SEED={seed})", file=sys.stderr)
    os._exit(1)


def create():
    """Three checkpoints of a disk and a memory; returns the images by 'ID/VOLUME'.

    By ID, because a repository that is cut off, and has lost its head, has a lineage that ends
    earlier: its name means an older checkpoint then.
    """
    images = {}
    run(tool, "init", store)
    content = bytearray(chance.randbytes(PAGE * 64) + bytes(PAGE * 64) + b"text " * (PAGE * 40))
    content = content[:PAGE * 300 + 512]
    for _ in range(3):
        for _ in range(20):
            frame = chance.randrange(300)
            content[frame * PAGE:(frame + 1) * PAGE] = chance.choice(
                [bytes(PAGE), chance.randbytes(PAGE), b"page" * (PAGE // 4)])
        with open(image, "wb") as file:
            file.write(content)
        memory = bytes(content[:PAGE * 200])
        with open(f"{work}/memory", "wb") as file:
            file.write(memory)
        run(tool, "import", store, f"{work}/memory", "--lineage", "web", "--volume",
            f"xvda={image}")
        newest = json.loads(run(tool, "show", store, "web", "--json").stdout)["id"]
        for volume, bytes_ in [("xvda", bytes(content)), ("memory", memory)]:
            images[f"{newest}/{volume}"] = bytes_
    return images


class Server:
    def __init__(self, of):
        self.socket = f"{work}/socket"
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.log = open(f"{work}/log", "w+")
        self.process = subprocess.Popen(
            # Without the filter, nbdkit 1.32 ends by an assertion of its own (connections.c), with
            # any plugin that answers several requests of a connection at once.
            ["nbdkit", "-f", "-U", self.socket, "--filter=noparallel", plugin, f"store={of}",
             "cache=1M", "serialize=requests"],
            stdout=self.log, stderr=self.log)
        end = time.monotonic() + 60
        while not os.path.exists(self.socket) and self.process.poll() is None:
            if time.monotonic() > end:
                stop(f"the server does not start: {of}")
            time.sleep(0.005)

    @property
    def has_started(self):
        return self.process.poll() is None

    def finish(self):
        """Ends it; it must not have ended by itself, unless by refusing what it was given."""
        code = self.process.poll()
        if code is None:
            self.process.terminate()
            try:
                code = self.process.wait(60)
            except subprocess.TimeoutExpired:
                stop("the server does not end")
        self.log.seek(0)
        text = self.log.read()
        self.log.close()
        if code < 0 or "Fatal error" in text or "AddressSanitizer" in text:
            stop(f"the server ended with {code}: {text[-2000:]}")


# ---- Hostile clients ----
NAMES = ["web/xvda", "web~1/memory", "web/xvda@since=web~2", "", "web", "/", "@since=", "web/",
         "web/xvda@since=", "web/xvda@since=web/xvda", "../../etc/passwd", "web/xvda/..",
         "a" * 4096, "a" * 5000, "web~99999999999999999999/xvda", "web/xvda@since=web@since=web",
         "\0", "web\0/x"]


def option(number, data):
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def request(kind, flags=0, offset=0, length=0, data=b""):
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, chance.randrange(1 << 64), offset,
                       length) + data


def session():
    """What a client says: mostly right, so that it gets far."""
    name = chance.choice(NAMES).encode()
    if chance.random() < 0.1:
        name = chance.randbytes(chance.randrange(300))
    words = [struct.pack(">I", chance.choice([1, 3, 3, 3, chance.randrange(1 << 32)]))]
    if chance.random() < 0.5:
        words.append(option(8, b""))
    if chance.random() < 0.5:
        query = b"base:allocation"
        words.append(option(10, struct.pack(">I", len(name)) + name + struct.pack(">I", 1)
                            + struct.pack(">I", len(query)) + query))
    for _ in range(chance.randrange(3)):
        words.append(option(chance.choice([3, 6, 9, chance.randrange(1 << 32)]),
                            chance.randbytes(chance.randrange(40))))
    words.append(option(7, struct.pack(">I", len(name)) + name + struct.pack(">H", 0)))
    for _ in range(chance.randrange(40)):
        kind = chance.choice([0, 0, 0, 1, 3, 4, 5, 6, 7, chance.randrange(1 << 16)])
        offset = chance.choice([0, chance.randrange(PAGE * 301), chance.randrange(1 << 64)])
        length = chance.choice([0, 1, 512, PAGE, 65536, 1 << 20, 32 << 20, (1 << 32) - 1,
                                chance.randrange(1 << 32)])
        words.append(request(kind, chance.choice([0, 0, 1, 4, 8, chance.randrange(1 << 16)]),
                             offset, length, bytes(min(length, 512)) if kind == 1 else b""))
    if chance.random() < 0.5:
        words.append(request(2))
    data = bytearray(b"".join(words))
    if chance.random() < 0.5:
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if chance.random() < 0.2:
        del data[chance.randrange(len(data)):]
    return bytes(data)


def attack(server, data, patience):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(patience)
        try:
            client.connect(server.socket)
            client.sendall(data)
            while client.recv(1 << 20):
                pass
        except (TimeoutError, ConnectionError, BrokenPipeError):
            pass


def check_clients(images, until):
    server = Server(store)
    done = threading.Event()

    def behave():
        # The newest one's.
        right = [each for name, each in images.items() if name.endswith("/xvda")][-1]
        own = random.Random(seed)
        while not done.is_set():
            handle = nbd.NBD()
            handle.set_uri_allow_local_file(True)
            handle.connect_uri(f"nbd+unix:///web%2Fxvda?socket={server.socket}")
            for _ in range(20):
                offset = own.randrange(len(right))
                count = min(own.choice([1, PAGE, 100000]), len(right) - offset)
                if handle.pread(count, offset) != right[offset:offset + count]:
                    stop(f"{count} bytes at {offset} are wrong beside hostile clients")
                counts["right"] += 1
            handle.shutdown()

    def guarded():
        try:
            behave()
        except nbd.Error as error:
            time.sleep(1)
            stop(f"a well-behaved client failed: {error}; the server: {server.process.poll()}")

    thread = threading.Thread(target=guarded)
    thread.start()
    while time.monotonic() < until:
        several = [threading.Thread(
            target=attack, args=(server, session(), chance.choice([0.02, 0.2])))
            for _ in range(4)]
        for each in several:
            each.start()
        for each in several:
            each.join()
        counts["clients"] += len(several)
        if not server.has_started:
            break
    done.set()
    thread.join()
    server.finish()


# ---- Hostile repositories ----
def damage(folder):
    files = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names
             if os.path.getsize(os.path.join(place, name)) > 0]
    for _ in range(chance.choice([1, 1, 3, 20])):
        path = chance.choice(files)
        length = os.path.getsize(path)
        if length == 0:
            continue
        kind = chance.randrange(6)
        with open(path, "r+b") as file:
            if kind == 0:
                file.truncate(chance.randrange(length))
            elif kind == 1:
                file.seek(chance.randrange(length))
                file.write(chance.randbytes(chance.choice([1, 8, 500])))
            elif kind == 2:
                # A part of the same file at another place: its checksum is right.
                file.seek(chance.randrange(length))
                part = file.read(chance.choice([64, PAGE, 20000]))
                file.seek(chance.randrange(length))
                file.write(part)
            elif kind == 3:
                file.seek(chance.randrange(length))
                file.write(b"\xff" * chance.choice([1, 4, 8]))
            elif kind == 4:
                file.seek(0, os.SEEK_END)
                file.write(chance.randbytes(1000))
        if kind == 5:
            other = chance.choice(files)
            if os.path.exists(other) and other != path:
                shutil.copyfile(other, path)


def read_all(server, export, right):
    """Reads in pieces: each is right, or fails."""
    handle = nbd.NBD()
    uri = f"nbd+unix:///{export.replace('/', '%2F')}?socket={server.socket}"
    try:
        handle.connect_uri(uri)
    except nbd.Error:
        counts["refused"] += 1
        return
    size = handle.get_size()
    if size != len(right):
        stop(f"{export} of a damaged repository has {size} bytes, not {len(right)}")
    for offset in range(0, size, 16 * PAGE):
        count = min(16 * PAGE, size - offset)
        try:
            got = handle.pread(count, offset)
        except nbd.Error:
            counts["failed"] += 1
            continue
        if got != right[offset:offset + count]:
            stop(f"{export} of a damaged repository gives wrong bytes at {offset}")
        counts["right"] += 1
    try:
        handle.shutdown()
    except nbd.Error:
        pass


def check_repositories(images, until):
    while time.monotonic() < until:
        folder = f"{work}/damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(store, folder)
        damage(folder)
        counts["repositories"] += 1
        server = Server(folder)
        if server.has_started:
            threads = [threading.Thread(target=read_all, args=(server, export, right))
                       for export, right in images.items()]
            for each in threads:
                each.start()
            for each in threads:
                each.join(120)
                if each.is_alive():
                    stop("a read of a damaged repository does not end")
        server.finish()


def main():
    print(f"nbdkit: fuzzing for {seconds:.0f} s, VARVE_SEED={seed}")
    images = create()
    start = time.monotonic()
    check_clients(images, start + seconds / 2)
    check_repositories(images, start + seconds)
    print("nbdkit: {clients} hostile clients, {repositories} damaged repositories: {right} reads "
          "were right, {failed} failed, {refused} exports were refused, none was wrong".format(
              **counts))


main()
