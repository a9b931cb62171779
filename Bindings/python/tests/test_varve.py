"""The binding, with memory compared: python -m unittest discover."""

import contextlib
import io
import mmap
import os
import random
import select
import shutil
import struct
import tempfile
import threading
import unittest

import varve

PAGE = 4096


class Machine:
    """Two regions of memory, and a bitmap for each."""

    def __init__(self):
        self.memories = [mmap.mmap(-1, 100 * PAGE), bytearray(30 * PAGE)]
        self.bitmaps = [bytearray(16), bytearray(8)]
        self.regions = [
            varve.Region(self.memories[0]),
            varve.Region(self.memories[1], guest_address=200 * PAGE),
        ]
        self.random = random.Random(1)

    def write(self, region, page):
        bytes_ = self.random.randbytes(PAGE)
        self.memories[region][page * PAGE : (page + 1) * PAGE] = bytes_
        self.bitmaps[region][page // 8] |= 1 << page % 8

    def run(self):
        for _ in range(10):
            self.write(0, self.random.randrange(100))
            self.write(1, self.random.randrange(30))

    def take_dirty(self):
        dirty = varve.Dirty(bitmaps=[bytes(bitmap) for bitmap in self.bitmaps])
        for bitmap in self.bitmaps:
            bitmap[:] = bytes(len(bitmap))
        return dirty

    def copy(self):
        return [bytes(memory) for memory in self.memories]


class VarveTests(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.path = os.path.join(self.directory, "store")
        self.machine = Machine()

    def tearDown(self):
        shutil.rmtree(self.directory)

    def test_captures_reverts_and_restores(self):
        machine = self.machine
        with varve.Repository.create(self.path) as repository:
            with repository.session("machine", machine.regions) as session:
                self.assertIsNone(session.parent)
                taken = []
                for number in range(20):
                    machine.run()
                    state = struct.pack("<I", number)
                    result = session.capture(machine.take_dirty(), state, f"label-{number}")
                    taken.append((result.id, machine.copy(), state))
                    self.assertLessEqual(result.changed_page_count, 20 if number else 130)
                self.assertEqual(session.parent, taken[-1][0])
                for number in (3, 19, 0, 11):
                    machine.run()
                    id, copy, state = taken[number]
                    reverted = session.revert(id, machine.take_dirty())
                    self.assertEqual(machine.copy(), copy)
                    self.assertEqual(reverted.state, state)
            id, copy, state = taken[7]
            other = Machine()
            self.assertEqual(repository.restore(id, other.regions), state)
            self.assertEqual(other.copy(), copy)
            self.assertEqual(repository.state(id), state)
            self.assertEqual(repository.find("label-7").id, id)
            self.assertEqual(repository.find("machine~12").id, id)
            self.check_branch(repository, id, copy)
            self.check_lists(repository, taken)

    def check_branch(self, repository, id, copy):
        regions = self.machine.regions
        with repository.session("branch", regions, parent=id, worker_count=1) as session:
            session.revert(id)
            self.machine.write(1, 4)
            result = session.capture(self.machine.take_dirty())
        self.assertEqual(repository.checkpoint(result.id).parent, id)
        self.assertEqual(repository.difference(id, result.id), [varve.Range(204, 1)])
        with repository.reader(id) as reader:
            self.assertEqual(reader.read(204 * PAGE, PAGE), copy[1][4 * PAGE : 5 * PAGE])
            whole = bytearray(100 * PAGE)
            reader.read_into(0, whole)
            self.assertEqual(bytes(whole), copy[0])

    def check_lists(self, repository, taken):
        ids = [id for id, _, _ in taken]
        self.assertEqual(repository.checkpoints("machine"), ids)
        self.assertEqual(repository.checkpoints("machine", newest=2, before=ids[5]), ids[3:5])
        self.assertEqual(repository.checkpoint(ids[1]).lineage, "machine")
        (volume,) = repository.volumes(ids[0])
        self.assertEqual(volume.name, "memory")
        self.assertEqual((volume.byte_count, volume.extent_byte_count), (130 * PAGE, 230 * PAGE))
        repository.set_label(ids[15], "given-later")
        self.assertEqual(repository.find("given-later").id, ids[15])
        repository.set_label(ids[15], None)
        self.assertIsNone(repository.checkpoint(ids[15]).label)
        with self.assertRaises(varve.InvalidName):
            repository.set_label(ids[15], "machine")
        self.assertEqual(repository.statistics().checkpoint_count, 21)
        with tempfile.TemporaryFile() as file:
            repository.export(ids[7], file)
            file.seek(200 * PAGE)
            self.assertEqual(file.read(), taken[7][1][1])
        repository.forget(ids[:15])
        self.assertGreater(repository.prune(0).freed_byte_count, 0)
        self.assertEqual(repository.verify().checkpoint_count, 6)

    def test_the_code_of_the_readme_runs(self):
        path = os.path.join(os.path.dirname(__file__), "..", "README.md")
        with open(path, encoding="utf-8") as file:
            code = file.read().split("```python\n")[1].split("```")[0]
        output = io.StringIO()
        with contextlib.chdir(self.directory), contextlib.redirect_stdout(output):
            exec(code, {})
        self.assertEqual(output.getvalue(), "b'registers' b'first'\n")

    def test_a_capture_is_awaited_by_its_descriptor(self):
        with varve.Repository.create_volatile() as repository:
            with repository.session("machine", self.machine.regions) as session:
                capture = session.begin(self.machine.take_dirty())
                copy = self.machine.copy()
                self.machine.run()
                readable, _, _ = select.select([capture], [], [], 60)
                self.assertEqual(readable, [capture])
                result = capture.wait(0)
                self.assertEqual(capture.wait(), result)
                capture.close()
                other = Machine()
                repository.restore(result.id, other.regions)
                self.assertEqual(other.copy(), copy)

    def test_failures_are_exceptions(self):
        with self.assertRaises(varve.NotFound) as caught:
            varve.Repository.open(self.path)
        self.assertIn(self.path, str(caught.exception))
        with varve.Repository.create(self.path) as repository:
            with self.assertRaises(FileExistsError):
                varve.Repository.create(self.path)
            with self.assertRaises(varve.Busy):
                varve.Repository.open(self.path, writing=True, wait_seconds=0.05)
            with self.assertRaises(varve.InvalidName):
                repository.session("-", self.machine.regions)
            with self.assertRaises(BufferError):
                varve.Region(b"it cannot be written")
            with repository.session("machine", self.machine.regions) as session:
                short = varve.Dirty(bitmaps=[bytes(8), bytes(8)])
                with self.assertRaises(varve.InvalidArgument):
                    session.capture(short)
                with self.assertRaises(varve.Busy):
                    repository.close()
            with self.assertRaises(varve.InvalidHandle):
                session.capture()
            with self.assertRaises(LookupError):
                repository.find("nothing")
        with self.assertRaises(varve.InvalidHandle):
            repository.statistics()

    def test_progress_and_cancellation(self):
        with varve.Repository.create(self.path) as repository:
            with repository.session("machine", self.machine.regions) as session:
                session.capture()
            seen = []
            repository.verify(progress=lambda *values: seen.append(values))
            self.assertTrue(seen and seen[0][0] == "verifying")
            with self.assertRaises(varve.Cancelled):
                repository.verify(progress=lambda *_: False)

            def fail(*_):
                raise KeyError("mine")

            with self.assertRaises(KeyError):
                repository.verify(progress=fail)
            with varve.Cancellation() as cancellation:
                cancellation.cancel()
                with self.assertRaises(varve.Cancelled):
                    repository.verify(cancellation=cancellation)

    def test_damage_says_where(self):
        with varve.Repository.create(self.path) as repository:
            with repository.session("machine", self.machine.regions) as session:
                self.machine.run()
                id = session.capture().id
        with open(os.path.join(self.path, "packs", "00000001.pack"), "r+b") as pack:
            pack.seek(9000)
            pack.write(b"damaged!")
        with varve.Repository.open(self.path) as repository:
            self.assertGreater(repository.verify().finding_count, 0)
            with self.assertRaises(varve.Corrupted) as caught:
                repository.restore(id, self.machine.regions)
            self.assertEqual(caught.exception.corruption.file, "packs/00000001.pack")
            self.assertEqual(caught.exception.corruption.checkpoint, id)

    def test_a_repair_is_planned(self):
        with varve.Repository.create(self.path) as repository:
            with repository.session("machine", self.machine.regions) as session:
                self.machine.run()
                id = session.capture(label="damaged").id
            with self.assertRaises(varve.Busy):
                varve.plan_repair(self.path)
        plan = varve.plan_repair(self.path)
        self.assertEqual((plan.findings, plan.losses, plan.whole_checkpoint_count), ([], [], 1))
        with open(os.path.join(self.path, "packs", "00000001.pack"), "r+b") as pack:
            pack.seek(9000)
            pack.write(b"damaged!")
        plan = varve.plan_repair(self.path)
        self.assertEqual(plan.whole_checkpoint_count, 0)
        self.assertEqual(plan.findings[0].corruption.file, "packs/00000001.pack")
        self.assertIn(plan.findings[0].remedy, ("rewritten", "removed"))
        self.assertIn(id, plan.findings[0].affected)
        (loss,) = plan.losses
        self.assertEqual((loss.id, loss.lineage, loss.label), (id, "machine", "damaged"))
        self.assertTrue(all(disk is None and pages.count > 0 for disk, pages in loss.lost))
        with self.assertRaises(varve.Cancelled), varve.Cancellation() as cancellation:
            cancellation.cancel()
            varve.plan_repair(self.path, cancellation=cancellation)

    def test_a_session_needs_a_repository_for_writing(self):
        varve.Repository.create(self.path).close()
        with varve.Repository.open(self.path) as repository:
            with self.assertRaises(varve.ReadOnly):
                repository.session("machine", self.machine.regions)

    def test_files_are_cut_and_reverted_with_the_memory(self):
        if "VARVE_REFLINKS" not in os.environ:
            self.skipTest("there is no file system with reflinks")
        with tempfile.TemporaryDirectory(dir=os.environ["VARVE_REFLINKS"]) as place:
            path = os.path.join(place, "root.img")
            with open(path, "wb") as image:
                image.truncate(60 * PAGE + 512)
            with varve.Repository.create(self.path) as repository:
                self.check_files(repository, path, os.path.join(place, "state"))
            self.assertEqual(sorted(os.listdir(place)), ["root.img", "state"])

    def check_files(self, repository, path, state):
        machine, taken = self.machine, []

        def write():
            machine.run()
            with open(path, "r+b") as image:
                image.seek(machine.random.randrange(60) * PAGE)
                image.write(machine.random.randbytes(3000))

        def contents():
            with open(path, "rb") as image:
                return image.read()

        files = [varve.File("root", path)]
        with repository.session(
            "machine", machine.regions, files=files, state_directory=state
        ) as session:
            for _ in range(5):
                write()
                result = session.capture(machine.take_dirty())
                self.assertGreater(result.disk_nanoseconds, 0)
                taken.append((result.id, machine.copy(), contents()))
            for id, memory, image in reversed(taken):
                write()
                reverted = session.revert(id, machine.take_dirty())
                self.assertGreater(reverted.written_block_count, 0)
                self.assertEqual((machine.copy(), contents()), (memory, image))
            session.check_disks()
        for id, _, image in taken:
            _, volume = repository.volumes(id)
            self.assertEqual((volume.name, volume.extent_byte_count), ("root", len(image)))
            with repository.reader(id, "root") as reader:
                self.assertEqual(reader.read(0, volume.extent_byte_count), image)

    def test_threads_and_objects_that_are_dropped(self):
        repository = varve.Repository.create_volatile()
        session = repository.session("machine", self.machine.regions)
        id = session.capture().id
        failures = []

        def read():
            try:
                for _ in range(10):
                    reader = repository.reader(id)
                    self.assertEqual(len(reader.read(0, PAGE)), PAGE)
                    session.capture(varve.Dirty())
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        # Without close: the session is freed first, then the repository.
        del session, repository


if __name__ == "__main__":
    unittest.main()
