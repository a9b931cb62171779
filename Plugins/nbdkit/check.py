"""Checks the plugin with clients that are not ours; `check` runs it.

python3 check.py PLUGIN VARVE DIRECTORY: the plugin, the tool and an empty directory. VARVE_SEED
repeats a run.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse

import nbd

from programs import run

PAGE = 4096
plugin, tool, work = sys.argv[1:4]
seed = int(os.environ.get("VARVE_SEED") or random.randrange(1 << 32))
chance = random.Random(seed)
store = f"{work}/store"
volumes = ["memory", "xvda", "xvdb"]


def expect(condition, what):
    if not condition:
        sys.exit(f"nbdkit: failed: {what} (VARVE_SEED={seed})")


def read(path):
    with open(path, "rb") as file:
        return file.read()


class Server:
    """An nbdkit with the plugin, on a socket."""

    def __init__(self, *parameters, of=store, filters=()):
        self.socket = f"{work}/socket-{time.monotonic_ns()}"
        self.log = open(f"{self.socket}.log", "w+")
        self.process = subprocess.Popen(
            ["nbdkit", "-f", "-U", self.socket, *(f"--filter={each}" for each in filters),
             plugin, f"store={of}", *parameters],
            stdout=self.log, stderr=self.log)
        end = time.monotonic() + 120
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"nbdkit did not start: {self.text()}")
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            print(f"nbdkit: its status at the failure: {self.process.poll()}; it said:\n"
                  + self.text(), file=sys.stderr)
            # It waits for connections that are open, which a failure leaves.
            self.process.kill()
            self.process.wait()
            return
        self.process.terminate()
        expect(self.process.wait(120) == 0, f"nbdkit ended well: {self.text()}")
        self.log.close()

    def text(self):
        self.log.flush()
        return read(self.log.name).decode()

    def uri(self, export):
        return f"nbd+unix:///{urllib.parse.quote(export, safe='')}?socket={self.socket}"

    def connect(self, export):
        handle = nbd.NBD()
        handle.set_full_info(True)
        handle.connect_uri(self.uri(export))
        return handle

    def map(self, export):
        """The extents of an export as nbdinfo shows them: (offset, length, type)."""
        found = json.loads(run("nbdinfo", "--map", "--json", self.uri(export)).stdout)
        return [(each["offset"], each["length"], each["type"]) for each in found]


# ---- The images: they are the truth that everything is compared with ----
def change(image, length):
    """Writes blocks and runs of blocks with random bytes, text or zeros, and resizes the image."""
    image += bytes(max(0, length - len(image)))
    del image[length:]
    for _ in range(chance.randrange(1, 12)):
        first = chance.randrange(len(image) // PAGE)
        count = min(chance.choice([1, 1, 2, 7, 40]), len(image) // PAGE - first)
        for frame in range(first, first + count):
            kind = chance.randrange(4)
            content = (bytes(PAGE) if kind == 0 else b"text " * 819 + b"\n" if kind == 1
                       else chance.randbytes(PAGE))
            image[frame * PAGE:(frame + 1) * PAGE] = content
    if len(image) % PAGE:
        image[-7:] = chance.randbytes(7)


def blocks(image):
    return [bytes(image[at:at + PAGE]) for at in range(0, len(image), PAGE)]


def runs(flags, length):
    """A map of an image whose blocks are data where the flags say so."""
    result = []
    for index, flag in enumerate(flags):
        end = min((index + 1) * PAGE, length)
        kind = 0 if flag else 3
        if result and result[-1][2] == kind:
            start = result.pop()[0]
        else:
            start = index * PAGE
        result.append((start, end - start, kind))
    return result


def content_map(image):
    return runs([any(block) for block in blocks(image)], len(image))


def changes_map(old, new):
    before, after = blocks(old), blocks(new)
    before += [b""] * (len(after) - len(before))
    # What does not exist is as zeros, also in the rest of a last block.
    return runs([a.ljust(PAGE, b"\0") != b.ljust(PAGE, b"\0") for a, b in zip(before, after)],
                len(new))


def capture(images, into=store):
    command = [tool, "import", into, "--lineage", "web", "--json"]
    for name, image in images.items():
        with open(f"{work}/{name}.img", "wb") as file:
            file.write(image)
        command += ["--volume", f"{name}={work}/{name}.img"]
    return json.loads(run(*command).stdout.splitlines()[-1])["id"]


def create_store(count):
    """Returns the ids and the images of a chain of checkpoints."""
    run(tool, "init", store)
    images = {"memory": bytearray(3 << 20), "xvda": bytearray(6 << 20), "xvdb": bytearray(2 << 20)}
    chain = []
    for number in range(count):
        for name, image in images.items():
            length = len(image)
            # A disk grows, to an end within a block, and shrinks.
            if name == "xvda":
                length = {5: length + 5 * 512, 9: length + (1 << 20), 13: 5 << 20}.get(
                    number, length)
            change(image, length)
        identifier = capture(images)
        chain.append((identifier, {name: bytes(image) for name, image in images.items()}))
    return chain


# ---- The checks ----
def check_images(server, chain):
    count = 0
    for identifier, images in [chain[0], chain[5], chain[len(chain) // 2], chain[-1]]:
        for name in volumes:
            export = f"{identifier}/{name}"
            copy, exported = f"{work}/copy", f"{work}/exported"
            run("nbdcopy", server.uri(export), copy)
            run(tool, "export", store, identifier, exported, "--volume", name, "--force")
            expect(read(copy) == read(exported), f"nbdcopy of {export} equals varve export")
            end = len(read(exported))
            # A raw image of the memory ends with its last page.
            expect(read(copy) == images[name][:end] and not any(images[name][end:]),
                   f"{export} is the image")
            run("qemu-img", "compare", "-f", "raw", "-F", "raw", exported, server.uri(export))
            expect(server.map(export) == content_map(images[name][:end]), f"the map of {export}")
            count += 1
    print(f"nbdkit: {count} exports: nbdcopy, qemu-img compare and nbdinfo --map agree with "
          "varve export and with the images")


def check_changes(server, chain):
    extent_count = byte_count = 0
    for name in volumes:
        image = bytearray(chain[0][1][name])
        for (old, before), (new, after) in zip(chain, chain[1:]):
            export = f"{new}/{name}@since={old}"
            found = server.map(export)
            expect(found == changes_map(before[name], after[name]), f"the map of {export}")
            run("nbdcopy", server.uri(export), f"{work}/changes")
            changes = read(f"{work}/changes")
            length = len(after[name])
            image += bytes(max(0, length - len(image)))
            del image[length:]
            for offset, count, kind in found:
                if kind == 0:
                    image[offset:offset + count] = changes[offset:offset + count]
                    extent_count += 1
                    byte_count += count
                else:
                    expect(not any(changes[offset:offset + count]), f"holes of {export}")
            expect(image == after[name], f"{export} applied to the image before it")
    # Back in time, over all steps at once.
    (first, before), (last, after) = chain[0], chain[-1]
    export = f"{first}/xvda@since={last}"
    expect(server.map(export) == changes_map(after["xvda"], before["xvda"]), f"{export}")
    handle = server.connect(export)
    text = handle.get_export_description()
    expect("NOT an image" in text and last[:12] in text, f"its description: {text}")
    handle.shutdown()
    print(f"nbdkit: {len(chain) - 1} steps of 3 volumes: {extent_count} changed extents, "
          f"{byte_count} bytes, give each next image byte for byte")


def check_names(chain):
    identifier = chain[-1][0]
    with Server() as server:
        listed = json.loads(run("nbdinfo", "--list", "--json", server.uri("")).stdout)["exports"]
        names = [each["export-name"] for each in listed]
        expect(names == [f"{each}/{name}" for each, _ in reversed(chain) for name in volumes],
               f"the list, the newest first: {names[:4]}")
        expect(all("of web, paused 20" in each["description"] for each in listed), "descriptions")
        expect(listed[1]["block_size_preferred"] == 65536 and listed[1]["is_read_only"]
               and listed[1]["can_multi_conn"], "block size, read-only, several connections")
        wrong = {
            "": "an export is named CHECKPOINT/VOLUME",
            "web": "an export is named CHECKPOINT/VOLUME",
            "web/": "an export is named CHECKPOINT/VOLUME",
            "nothing/xvda": "export 'nothing/xvda': ",
            "web/xvdq": "has no volume 'xvdq'; it has 'memory', 'xvda', 'xvdb'",
            "web/xvda@since=nothing": "export 'web/xvda@since=nothing': ",
            "web/xvd\x1b[31m": "export 'web/xvd?[31m': ",
        }
        for name, sentence in wrong.items():
            before = len(server.text())
            try:
                server.connect(name)
                expect(False, f"'{name}' is refused")
            except nbd.Error:
                pass
            said = server.text()[before:].strip()
            expect(sentence in said and len(said.splitlines()) == 1, f"'{name}': {said}")
        for name in ["web/xvda", "web~/xvda", f"{identifier[:10]}/xvda"]:
            server.connect(name).shutdown()
    with Server("checkpoint=web~2") as server:
        listed = json.loads(run("nbdinfo", "--list", "--json", server.uri("xvda")).stdout)
        expect([each["export-name"] for each in listed["exports"]]
               == [f"{chain[-3][0]}/{name}" for name in volumes], "only that checkpoint")
        handle = server.connect("xvda")
        expect(handle.pread(handle.get_size(), 0) == chain[-3][1]["xvda"], "the name of the volume")
        handle.shutdown()
        for name in ["", f"{identifier}/xvda"]:
            try:
                server.connect(name)
                expect(False, f"'{name}' is refused with checkpoint=")
            except nbd.Error:
                pass
    single = f"{work}/single"
    run(tool, "init", single)
    capture({"xvda": bytearray(chain[0][1]["xvda"])}, into=single)
    with Server("checkpoint=web", of=single) as server:
        handle = server.connect("")
        expect(handle.pread(handle.get_size(), 0) == chain[0][1]["xvda"], "the default export")
        handle.shutdown()
    for parameters, sentence in [
            ([f"store={work}/none"], "none"), ([f"store={work}"], "no repository"),
            ([f"store={store}", "checkpoint=nothing"], "nothing"), ([], "name the repository"),
            ([f"store={store}", "readers=0"], "1 to 64"), (["stores=1"], "no parameter")]:
        done = run("nbdkit", "-U", "-", plugin, *parameters, "--run", "echo it runs", check=False)
        said = done.stderr.strip()
        expect(done.returncode != 0 and "it runs" not in done.stdout and sentence in said
               and len(said.splitlines()) == 1, f"{parameters}: {said}")
        print(f"nbdkit:   {said}")
    print(f"nbdkit: {len(names)} exports listed; names that are wrong get one sentence each")


def read_blocks(handle, image, what):
    """Reads each block, which must be right or fail: the numbers of both."""
    right = wrong = 0
    for offset in range(0, handle.get_size(), PAGE):
        expected = image[offset:offset + PAGE]
        try:
            expect(handle.pread(len(expected), offset) == expected, f"byte {offset} of {what}")
            right += 1
        except nbd.Error as error:
            expect(error.errno == "EIO", f"{error.errno} of a damaged block")
            wrong += 1
    return right, wrong


def check_damage(chain):
    """No wrong byte, and errors only where a pack is damaged."""
    damaged = f"{work}/damaged"
    shutil.copytree(store, damaged)
    for folder, _, names in os.walk(f"{damaged}/packs"):
        for name in names:
            path = f"{folder}/{name}"
            places = range(4096, os.path.getsize(path) - 64, 1 << 20)
            with open(path, "r+b") as file:
                for place in places:
                    file.seek(place + chance.randrange(1 << 19))
                    content = file.read(64)
                    file.seek(-len(content), os.SEEK_CUR)
                    file.write(bytes(byte ^ 0xff for byte in content))
    failed = {"": 0, "cache=0": 0}
    read_count = refused = 0
    for parameters in failed:
        with Server(*[each for each in [parameters] if each], of=damaged) as server:
            for identifier, images in chain[::4]:
                for name in volumes:
                    try:
                        handle = server.connect(f"{identifier}/{name}")
                    except nbd.Error:
                        # Its page map or manifest is damaged.
                        refused += 1
                        continue
                    right, wrong = read_blocks(handle, images[name], f"{identifier}/{name}")
                    handle.shutdown()
                    read_count += right
                    failed[parameters] += wrong
            expect("export '" in server.text() and "packs/" in server.text(), "what is damaged")
    expect(failed[""] == failed["cache=0"] > 0, f"the same blocks fail with a cache: {failed}")
    expect(read_count > failed[""], f"what is not damaged is read: {read_count}, {failed}")
    print(f"nbdkit: damaged packs: {failed['']} blocks fail with EIO, {read_count // 2} are right, "
          f"no byte is wrong; {refused // 2} exports are refused")


def hold_while_pruned(server, chain):
    """A checkpoint that is open is read although it was forgotten and pruned."""
    identifier, images = chain[3]
    handle = server.connect(f"{identifier}/xvda")
    run(tool, "forget", store, identifier, chain[4][0])
    run(tool, "prune", store, "--max-unused", "0")
    expect(handle.pread(handle.get_size(), 0) == images["xvda"], "a pruned checkpoint that is held")
    # A second connection shares what the first one holds.
    other = server.connect(f"{identifier}/xvda")
    expect(other.pread(65536, 0) == images["xvda"][:65536], "a second connection to it")
    other.shutdown()
    handle.shutdown()
    try:
        server.connect(f"{chain[4][0]}/xvda")
        expect(False, "a forgotten checkpoint is refused")
    except nbd.Error:
        pass


def check_beside(server, chain):
    """Four connections read while checkpoints are captured, forgotten and pruned."""
    stop = threading.Event()
    counts = [0] * 4
    failures = []

    def reader(number):
        own = random.Random(seed + number)
        while not stop.is_set():
            # Forgotten and pruned meanwhile are chain[8:12]; these stay.
            identifier, images = own.choice([chain[0], chain[7], chain[-1]])
            name = own.choice(volumes)
            try:
                handle = server.connect(f"{identifier}/{name}")
                size = handle.get_size()
                for _ in range(20):
                    offset = own.randrange(size)
                    count = min(own.choice([1, 512, 5000, 300000]), size - offset)
                    if handle.pread(count, offset) != images[name][offset:offset + count]:
                        failures.append(f"{identifier}/{name} at {offset}")
                    counts[number] += 1
                handle.shutdown()
            except nbd.Error as error:
                failures.append(f"{identifier}/{name}: {error}")

    threads = [threading.Thread(target=reader, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    current = {name: bytearray(image) for name, image in chain[-1][1].items()}
    captured = []
    for number in range(4):
        change(current["xvda"], len(current["xvda"]))
        captured.append((capture(current), {name: bytes(each) for name, each in current.items()}))
        run(tool, "forget", store, chain[8 + number][0])
        run(tool, "prune", store, "--max-unused", "0")
        # A server that runs sees what was captured after it had started.
        run("nbdcopy", "--connections=4", "--requests=16", "--request-size=65536",
            server.uri("web/xvda"), f"{work}/newest")
        expect(read(f"{work}/newest") == bytes(current["xvda"]), "the newest, by 4 connections")
    stop.set()
    for thread in threads:
        thread.join()
    expect(not failures, f"{failures[:3]}; {server.text()[-2000:]}")
    expect(min(counts) > 0, f"each connection read: {counts}")
    # A name keeps its meaning while a connection has it open, and then gets the new one.
    handle = server.connect("web/xvda")
    before = bytes(current["xvda"])
    change(current["xvda"], len(current["xvda"]))
    capture(current)
    other = server.connect("web/xvda")
    expect(other.pread(len(before), 0) == before, "connections to one name see one checkpoint")
    other.shutdown()
    handle.shutdown()
    time.sleep(0.2)
    other = server.connect("web/xvda")
    expect(other.pread(len(before), 0) == bytes(current["xvda"]), "later ones see the newest")
    other.shutdown()
    print(f"nbdkit: beside 4 captures, forgets and prunes, 4 connections made {sum(counts)} reads, "
          "all right; a checkpoint that is open outlives forget and prune")


def check_overlay(chain):
    """The filter `cow` as the documents use it: for one export, and the checkpoint stays."""
    image = chain[-1][1]["xvda"]
    changed = bytes(PAGE) if any(image[:PAGE]) else b"x" * PAGE
    parameters = ["checkpoint=web", "exportname=xvda", "exportname-strict=true"]
    with Server(*parameters, filters=["exportname", "cow"]) as server:
        handle = server.connect("xvda")
        handle.pwrite(changed, 0)
        expect(handle.pread(len(image), 0) == changed + image[PAGE:], "what cow was written")
        handle.shutdown()
        for other in ["xvdb", "web/xvda", "xvda@since=web~1"]:
            expect(run("nbdinfo", server.uri(other), check=False).returncode != 0,
                   f"'{other}' is refused: it would show what was written to xvda")
    with Server() as server:
        handle = server.connect("web/xvda")
        expect(handle.pread(len(image), 0) == image, "the checkpoint is as it was")
        handle.shutdown()
    print("nbdkit: the filter cow serves one export, and leaves the checkpoint as it is")


def main():
    print(f"nbdkit: VARVE_SEED={seed}")
    chain = create_store(21)
    with Server() as server:
        check_images(server, chain)
        check_changes(server, chain)
    # A cache of one block, no cache, and one reader: the same bytes.
    for parameters in [["cache=64K", "readers=1"], ["cache=0"]]:
        with Server(*parameters) as server:
            handle = server.connect("web/xvda")
            image = chain[-1][1]["xvda"]
            for _ in range(300):
                offset = chance.randrange(len(image))
                count = min(chance.choice([1, 700, 4096, 200000]), len(image) - offset)
                expect(handle.pread(count, offset) == image[offset:offset + count],
                       f"{count} bytes at {offset} with {parameters}")
            handle.shutdown()
    check_overlay(chain)
    check_names(chain)
    check_damage(chain)
    with Server() as server:
        hold_while_pruned(server, chain)
        check_beside(server, chain)
    run(tool, "verify", store)


main()
