"""Checks 'varve serve', 'varve mount' and 'varve unmount'; `check` runs it.

python3 check_commands.py PLUGIN VARVE DIRECTORY: the plugin, the tool and an empty directory.
They are skipped where file systems cannot be mounted.
"""

import glob
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time

from programs import run

plugin, tool, work = sys.argv[1:4]
store = f"{work}/store"
mounted = f"{work}/mounted"


def expect(condition, what):
    if not condition:
        sys.exit(f"nbdkit: failed: {what}")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuses(words, *command, status=1):
    """The tool fails with one sentence that has the words."""
    done = run(tool, *command, check=False)
    lines = done.stderr.splitlines()
    expect(done.returncode == status and len(lines) >= 1 and words in done.stderr,
           f"'{' '.join(command)}' says '{words}': {done.returncode} {done.stderr}")
    expect(status == 2 or len(lines) == 1, f"one sentence: {done.stderr}")


# ---- Serve ----
class Served:
    """A running 'varve serve'; its URI is what it printed."""

    def __init__(self, *arguments, directory=None):
        self.process = subprocess.Popen(
            [tool, "serve", *arguments, "--plugin", plugin], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=directory)
        self.uri = self.process.stdout.readline().strip()
        expect(self.uri.startswith("nbd"), f"serve {arguments}: {self.uri}"
               + (self.process.stderr.read() if self.process.poll() is not None else ""))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
            print(self.process.communicate()[1], file=sys.stderr)
            return
        self.process.terminate()
        expect(self.process.wait(60) == 0, "serve ends well by a signal")

    def export(self, name):
        return self.uri.replace("nbd+unix:///", f"nbd+unix:///{name}").replace(
            ":10899/", f":10899/{name}")


def same(uri, path):
    run("nbdcopy", uri, f"{work}/copy")
    expect(digest(f"{work}/copy") == digest(path), f"{uri} is {path}")


def check_serve(images):
    place = f"{work}/nbd.sock"
    with Served(store, "--socket", place) as server:
        # Its line is the promise that clients can connect, so there is no retry here.
        same(server.export("two%2Froot"), images["root"])
        same(server.export("one%2Fparted"), images["parted"])
        expect(stat.S_IMODE(os.stat(place).st_mode) == 0o600, "the socket is its owner's")
        refuses("another process serves", "serve", store, "--socket", place, "--plugin", plugin)
    # What is left of an ended server is replaced.
    with Served(store, "one", "--socket", place) as server:
        same(server.export("root"), images["old"])
        expect(run("nbdinfo", server.export("two%2Froot"), check=False).returncode != 0,
               "another checkpoint is not served")
    with Served(store, "one", "--volume", "root", "--writable", "--socket", place) as server:
        run("nbdcopy", images["root"], server.uri)
        same(server.uri, images["root"])
        expect(run("nbdinfo", server.export("parted"), check=False).returncode != 0,
               "another volume is not served")
    with Served(store, "one", "--volume", "root", "--socket", place) as server:
        same(server.uri, images["old"])
        expect(run("nbdcopy", images["root"], server.uri, check=False).returncode != 0,
               "nothing is written")
    with Served(store, "--port", "10899") as server:
        same(server.export("two/root"), images["root"])
    refuses("no lineage, label or checkpoint", "serve", store, "none", "--socket", place,
            "--plugin", plugin)
    refuses("no volume 'x'", "serve", store, "one", "--volume", "x", "--plugin", plugin)
    refuses("cannot load the plugin", "serve", store, "--plugin", f"{work}/none.so")
    refuses("1 to 107 bytes", "serve", store, "--socket", "x" * 200, "--plugin", plugin, status=2)
    # What is no socket stays as it is.
    file, link = f"{work}/precious", f"{work}/link"
    with open(file, "w") as opened:
        opened.write("precious")
    os.symlink(file, link)
    os.mkfifo(f"{work}/pipe")
    for name in [file, link, f"{work}/pipe", work, f"{store}/lock"]:
        before = os.lstat(name)
        refuses("is no socket; it was left", "serve", store, "--socket", name, "--plugin", plugin)
        expect(os.lstat(name)[:2] == before[:2], f"{name} is the same file")
    with open(file) as opened:
        expect(opened.read() == "precious", "the file's content")
    # A URI is one, whatever the path.
    with Served(store, "--socket", "a b%41?&#.sock", directory=work) as server:
        same(server.export("two%2Froot"), images["root"])
    refuses("needs ca-cert.pem", "serve", store, "--port", "10899", "--tls", work, "--plugin",
            plugin)
    refuses("cannot be created", "serve", store, "--socket", f"{work}/none/s", "--plugin", plugin)
    refuses("requires --volume", "serve", store, "one", "--writable", status=2)
    print("nbdkit: 'varve serve' serves all checkpoints, one, one volume, and a copy to write to")


# ---- Mount ----
def leftovers():
    """What a mount would leave: places, loop devices, processes."""
    found = glob.glob("/run/varve/mounts/*")
    found += [line for line in run("losetup", "--list", "--noheadings").stdout.splitlines()
              if "/run/varve/mounts/" in line]
    found += [line for line in run("ps", "-eo", "args").stdout.splitlines()
              if line.startswith(("nbdfuse ", "nbdkit ")) and store in line]
    return found


def gone(what):
    end = time.monotonic() + 60
    while leftovers():
        expect(time.monotonic() < end, f"{what} leaves {leftovers()}")
        time.sleep(0.05)


def mount(*arguments):
    run(tool, "mount", store, *arguments, "--plugin", plugin)


def check_mount(images):
    os.mkdir(mounted)
    for name, volume, options in [
            ("one", "root", []), ("two", "root", []), ("two", "parted", ["--partition", "2"]),
            ("two", "other", [])]:
        mount(name, mounted, "--volume", volume, *options)
        expected = images["files"][f"{name}/{volume}"]
        for file, content in expected.items():
            with open(f"{mounted}/{file}", "rb") as opened:
                expect(opened.read() == content, f"{file} in {volume} of {name}")
        expect(sorted(expected) == sorted(set(os.listdir(mounted)) - {"lost+found"}),
               f"the files of {volume} of {name}: {os.listdir(mounted)}")
        try:
            open(f"{mounted}/new", "w")
            expect(False, "it can be written")
        except OSError as error:
            expect(error.errno == 30, f"EROFS, not {error}")
        flags = [line for line in open("/proc/mounts") if f" {mounted} " in line][0]
        expect(all(flag in flags for flag in ["ro,", "nosuid", "nodev", "noexec"]), flags)
        # It is held: neither forgetting nor pruning takes it away.
        if name == "one":
            with open(f"{mounted}/committed") as opened:
                refuses("umount failed", "unmount", mounted)
                expect(opened.read() != "", "it is mounted as before")
            run(tool, "forget", store, "one")
            run(tool, "prune", store)
            with open("/proc/sys/vm/drop_caches", "w") as caches:
                caches.write("3")
            with open(f"{mounted}/large", "rb") as opened:
                expect(opened.read() == expected["large"], "a forgotten checkpoint is held")
        run(tool, "unmount", mounted)
        gone("unmount")
        expect(os.listdir(mounted) == [], "nothing is mounted")
    check_ends(images)
    expect("needs_recovery" in run("dumpe2fs", "-h", images["root"]).stdout,
           "the journal of the image is dirty")
    refuses("by --partition: 1 (8M), 2 (48M)", "mount", store, "two", mounted, "--volume", "parted",
            "--plugin", plugin)
    refuses("contains 'swap'", "mount", store, "two", mounted, "--volume", "swap", "--plugin",
            plugin)
    refuses("no file system", "mount", store, "two", mounted, "--volume", "noise", "--plugin",
            plugin)
    refuses("mount failed", "mount", store, "two", mounted, "--volume", "hurt", "--plugin", plugin)
    refuses("cannot be served", "mount", store, "two", mounted, "--volume", "root", "--partition",
            "9", "--plugin", plugin)
    refuses("name one of the disks", "mount", store, "two", mounted, "--plugin", plugin)
    refuses("cannot be used", "mount", store, "two", f"{mounted}/none", "--volume", "root",
            "--plugin", plugin)
    refuses("nothing is mounted", "unmount", mounted)
    refuses("was not mounted by", "unmount", "/proc")
    gone("a refusal")
    print("nbdkit: 'varve mount' shows what was committed, of ext4 after recovery, of XFS and of "
          "a partition; nothing is left of it, or of refusals")


def check_ends(images):
    """Mounts that end in another way than by 'varve unmount'."""
    expected = images["files"]["two/root"]["committed"]
    # The server is killed: reads fail, and the rest can be ended.
    mount("two", mounted, "--volume", "root")
    run("pkill", "-KILL", "-f", f"nbdkit .*store={store}")
    run(tool, "unmount", mounted)
    gone("a killed server")
    # umount(8) alone leaves the server, until the next mount.
    mount("two", mounted, "--volume", "root")
    run("umount", mounted)
    expect(leftovers() != [], "the server goes on")
    run(tool, "unmount", mounted)
    gone("'varve unmount' after umount(8)")
    mount("two", mounted, "--volume", "root")
    refuses("is mounted at", "mount", store, "two", mounted, "--volume", "root", "--plugin", plugin)
    run("umount", mounted)
    mount("two", mounted, "--volume", "root")
    expect(len(glob.glob("/run/varve/mounts/*")) == 1, "the next mount removes it")
    with open(f"{mounted}/committed", "rb") as opened:
        expect(opened.read() == expected, "what the next mount shows")
    run(tool, "unmount", mounted)
    gone("unmount")
    # Killed at any time, it leaves nothing that the next one does not remove.
    for number in range(20):
        process = subprocess.Popen([tool, "mount", store, "two", mounted, "--volume", "root",
                                    "--plugin", plugin], stdout=subprocess.DEVNULL)
        time.sleep(number * 0.02)
        process.kill()
        process.wait()
        # What it had started goes on.
        while run("pgrep", "-f", f"^(losetup|mount) .*({mounted}|/run/varve/mounts)",
                  check=False).returncode == 0:
            time.sleep(0.01)
        if run("mountpoint", "-q", mounted, check=False).returncode == 0:
            run(tool, "unmount", mounted)
    mount("two", mounted, "--volume", "root")
    run(tool, "unmount", mounted)
    gone("a killed mount")


def dirty(image, source):
    """Copies a file system while it is mounted: its journal has what its blocks do not have yet."""
    folder = f"{work}/source"
    os.makedirs(folder, exist_ok=True)
    run("mount", "-o", "loop", source, folder)
    try:
        files = {}
        for name, content in [("committed", b"committed\n" * 7), ("large", os.urandom(3 << 20))]:
            with open(f"{folder}/{name}", "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            files[name] = content
        # As a power failure: what the kernel has not written is missing.
        shutil.copyfile(source, image)
    finally:
        run("umount", folder)
    return files


def create_images():
    """Disks with file systems, in two checkpoints: one and two."""
    images = {name: f"{work}/{name}.img" for name in
              ["old", "root", "parted", "other", "swap", "noise", "hurt", "plain"]}
    files = {}
    run("truncate", "-s", "48M", images["plain"])
    run("mkfs.ext4", "-q", images["plain"])
    files["one/root"] = dirty(images["old"], images["plain"])
    files["two/root"] = dirty(images["root"], images["plain"])
    for name, size in [("parted", "64M"), ("swap", "8M"), ("hurt", "16M")]:
        run("truncate", "-s", size, images[name])
    run("sfdisk", images["parted"], input="label: dos\n,8M,83\n,48M,83\n")
    run("mkfs.ext4", "-q", f"{work}/partition", "48M")
    files["two/parted"] = dirty(f"{work}/second", f"{work}/partition")
    run("dd", f"if={work}/second", f"of={images['parted']}", "bs=1M", "seek=9", "conv=notrunc")
    run("truncate", "-s", "300M", f"{work}/xfs")
    run("mkfs.xfs", "-q", f"{work}/xfs")
    files["two/other"] = dirty(images["other"], f"{work}/xfs")
    run("mkswap", images["swap"])
    with open(images["noise"], "wb") as file:
        file.write(os.urandom(1 << 20))
    run("mkfs.ext4", "-q", "-b", "4096", images["hurt"])
    with open(images["hurt"], "r+b") as file:
        # The group descriptors: blkid knows the superblock, and the kernel refuses the rest.
        file.seek(4096)
        file.write(bytes(range(256)) * 8)
    images["files"] = files
    return images


def lacking():
    """What of mounts this machine cannot do; empty if nothing."""
    if os.geteuid() != 0:
        return "no root"
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    probe = f"{work}/probe"
    os.mkdir(f"{probe}.d")
    for kind, size in [("ext4", "8M"), ("xfs", "300M")]:
        run("truncate", "-s", size, probe)
        run(f"mkfs.{kind}", "-q", probe)
        done = run("mount", "-o", "loop", probe, f"{probe}.d", check=False)
        if done.returncode != 0:
            return f"{kind} cannot be mounted: {done.stderr.splitlines()[0]}"
        run("umount", f"{probe}.d")
        os.unlink(probe)
    return ""


def main():
    reason = lacking()
    if reason:
        line = f"skipped, varve serve and mount: {reason}"
        print(line)
        if os.environ.get("VARVE_SKIPS"):
            with open(os.environ["VARVE_SKIPS"], "a") as file:
                file.write(line + "\n")
        return
    images = create_images()
    run(tool, "init", store)
    for name, root in [("one", "old"), ("two", "root")]:
        words = []
        for volume in ["root", "parted", "other", "swap", "noise", "hurt"]:
            words += ["--volume", f"{volume}={images[root if volume == 'root' else volume]}"]
        run(tool, "import", store, "--lineage", name, *words)
    check_serve(images)
    check_mount(images)


main()
