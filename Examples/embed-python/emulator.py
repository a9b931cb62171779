"""A little emulator that takes checkpoints of its machine with the binding for Python.

    python3 emulator.py DIRECTORY        the repository, which does not exist yet

The machine has 4 MiB of memory and two registers. Each store marks its page in a bitmap, as
KVM_GET_DIRTY_LOG has it. The emulator takes 100 checkpoints while the machine runs, reverts it to
some of them in place, begins a branch from one, and fills the memory of another machine. Each time
it compares the whole memory with what it was when the checkpoint was taken.
"""

import hashlib
import mmap
import struct
import sys

import varve

PAGE = 4096
PAGE_COUNT = 1024
CHECKPOINT_COUNT = 100


class Machine:
    def __init__(self):
        self.memory = mmap.mmap(-1, PAGE_COUNT * PAGE)
        self.counter = 0
        self.accumulator = 0
        self.bitmap = bytearray(PAGE_COUNT // 8)

    def step(self):
        """One instruction: stores somewhere, and marks the page."""
        self.counter += 1
        self.accumulator = (self.accumulator * 6364136223846793005 + self.counter) % 2**64
        page = (self.accumulator >> 40) % PAGE_COUNT
        word = (self.accumulator >> 20) % (PAGE // 8)
        struct.pack_into("<Q", self.memory, page * PAGE + word * 8, self.accumulator)
        self.bitmap[page // 8] |= 1 << page % 8

    def run(self, count):
        for _ in range(count):
            self.step()

    def fingerprint(self):
        """A digest of every byte of the memory, and of the registers."""
        digest = hashlib.sha256(self.memory)
        digest.update(self.registers())
        return digest.digest()

    def registers(self):
        return struct.pack("<QQ", self.counter, self.accumulator)

    def load(self, registers):
        self.counter, self.accumulator = struct.unpack("<QQ", registers)

    # Its checkpoints.

    def regions(self):
        """Its memory, as it is passed to a session: one region from guest address 0 on."""
        return [varve.Region(self.memory)]

    def take_dirty(self):
        """The pages that were stored to since the last capture or revert."""
        dirty = varve.Dirty(bitmaps=[bytes(self.bitmap)])
        self.bitmap[:] = bytes(len(self.bitmap))
        return dirty

    def begin(self, session):
        """Begins a checkpoint. When this returns the machine may run again."""
        return session.begin(self.take_dirty(), self.registers())

    def revert(self, session, id):
        self.load(session.revert(id, self.take_dirty()).state)

    def compare(self, expected, what):
        if self.fingerprint() != expected:
            sys.exit(f"emulator: the memory differs after {what}")


def end(capture):
    with capture:
        return capture.wait().id


def travel(repository, machine):
    """Takes the checkpoints, and reverts to some of them."""
    ids, fingerprints, capture = [], [], None
    with repository.session("machine", machine.regions()) as session:
        for _ in range(CHECKPOINT_COUNT):
            machine.run(100)
            following = machine.begin(session)
            fingerprints.append(machine.fingerprint())
            # While this one is written, the machine has run for the next.
            if capture is not None:
                ids.append(end(capture))
            capture = following
        ids.append(end(capture))
        print("checkpoints:", len(ids))
        numbers = range(CHECKPOINT_COUNT - 1, -1, -11)
        for number in numbers:
            machine.revert(session, ids[number])
            machine.compare(fingerprints[number], "a revert")
            machine.run(1000)
        print(f"reverts: {len(numbers)}, the memory was equal each time")
    return ids, fingerprints


def branch(repository, machine, parent):
    """The machine goes another way from a checkpoint on."""
    with repository.session("branch", machine.regions(), parent=parent) as session:
        machine.revert(session, parent)
        machine.accumulator ^= 1
        machine.run(100)
        branched = end(machine.begin(session))
    pages = sum(frames.count for frames in repository.difference(parent, branched))
    print("branch: differs from its parent in 1 to 100 pages:", 1 <= pages <= 100)
    return branched


def main(directory):
    machine = Machine()
    with varve.Repository.create(directory) as repository:
        ids, fingerprints = travel(repository, machine)
        branched = branch(repository, machine, ids[50])

        other = Machine()
        other.load(repository.restore(branched, other.regions(), starts_zeroed=True))
        other.compare(machine.fingerprint(), "a restore")
        if other.fingerprint() == fingerprints[50]:
            sys.exit("emulator: the branch has the memory of its parent")
        print("restore: the memory is equal")

        report = repository.verify()
        print(
            f"verified: {report.checkpoint_count} checkpoints,"
            f" {report.finding_count} damaged places"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: emulator.py DIRECTORY")
    main(sys.argv[1])
