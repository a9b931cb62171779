import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Foundation
import Glibc
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// A domain has one owner among all processes of dom0.
@Suite struct DomainOwnerTests {
    private let directory = TemporaryDirectory()
    private var locks: String { directory.path.appending("locks").string }
    private var file: String { "\(locks)/domain-7.lock" }

    private func refusal(in place: String? = nil) -> GuestError? {
        failure { _ = try DomainLock(of: 7, in: place ?? locks) }
    }

    private func permissions(_ path: String) -> mode_t {
        var status = stat()
        return lstat(path, &status) == 0 ? status.st_mode & 0o7777 : 0
    }

    // MARK: - The lock

    @Test func aSecondOwnerInThisProcessIsRefused() throws {
        let scene = try Scene(8750)
        try scene.open()
        let error = failure {
            _ = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        }
        #expect(error?.code == .busy)
        #expect(error?.message.hasPrefix("this process already owns domain 7") == true)
        // Its guest and its session continue.
        scene.write()
        _ = try scene.capture()
        scene.expectSound(isLogOn: true)
        scene.close()
        let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
        withExtendedLifetime(domain) {}
    }

    @Test func theLockIsForItsUserAlone() throws {
        withExtendedLifetime(try DomainLock(of: 7, in: locks)) {}
        #expect(permissions(locks) == 0o700 && permissions(file) == 0o600)
        #expect(try String(contentsOfFile: file, encoding: .utf8) == "\(getpid())\n")
    }

    /// As in a program started by another thread, until its copies are closed.
    @Test func aCopyOfTheDescriptorKeepsNoLock() throws {
        var lock: DomainLock? = try DomainLock(of: 7, in: locks)
        let copy = dup(try #require(lock).descriptor)
        defer { close(copy) }
        lock = nil
        lock = try DomainLock(of: 7, in: locks)
        // But a copy in a surviving guard does.
        let guards = dup(try #require(lock).descriptor)
        lock?.leaveToGuard()
        lock = nil
        #expect(refusal()?.code == .busy)
        close(guards)
        withExtendedLifetime(try DomainLock(of: 7, in: locks)) {}
    }

    /// The other process: it has the lock until its input ends, or it is killed.
    private func holder(_ path: String) throws -> ChildProcess {
        let child = try ChildProcess(
            ["flock", "-x", path, "/bin/sh", "-c", "echo $$ >\(path); printf +; read -r line"],
            readsOutput: true)
        #expect(child.readByte() == UInt8(ascii: "+"), "flock(1) of util-linux is there")
        return child
    }

    @Test func theOwnerMayBeAnotherProcess() throws {
        do { withExtendedLifetime(try DomainLock(of: 7, in: locks)) {} }
        let child = try holder(file)
        let owner = try String(contentsOfFile: file, encoding: .utf8)
        let error = refusal()
        #expect(error?.code == .busy)
        #expect(error?.message.hasPrefix("process \(owner.dropLast()), or its guard,") == true)
        let scene = try Scene(8751)
        scene.options.lockDirectory = locks
        #expect(failure { try scene.open() }?.code == .busy, "nothing of the domain is touched")
        #expect(!scene.xen.with { $0.trace }.contains("enableLog"))
        child.wait()
        _ = try scene.capture()
    }

    @Test func whoDiesLeavesNoLock() throws {
        do { withExtendedLifetime(try DomainLock(of: 7, in: locks)) {} }
        let child = try holder(file)
        let owner = try String(contentsOfFile: file, encoding: .utf8).dropLast()
        #expect(refusal()?.code == .busy)
        let number = try #require(pid_t(owner))
        kill(number, SIGKILL)
        child.wait()
        withExtendedLifetime(try DomainLock(of: 7, in: locks)) {}
    }

    @Test func domainsHaveLocksOfTheirOwn() throws {
        let seven = try DomainLock(of: 7, in: locks)
        let eight = try DomainLock(of: 8, in: locks)
        #expect(refusal()?.code == .busy)
        withExtendedLifetime((seven, eight)) {}
    }

    /// The checkpointer is dead and its guard restores the domain: no other owner can come in
    /// between.
    @Test func theGuardKeepsTheLockUntilItIsDone() throws {
        var lock: DomainLock? = try DomainLock(of: 7, in: locks)
        let guardian = try XenGuard(
            command: ["/bin/sh", "-c", "printf +; cat >/dev/null"], domain: 7,
            lock: try #require(lock))
        // As if this process had died.
        lock?.leaveToGuard()
        lock = nil
        #expect(refusal()?.message.contains("this process already owns") == true)
        guardian.dismiss()
        withExtendedLifetime(try DomainLock(of: 7, in: locks)) {}
    }

    // MARK: - Unsafe directories

    @Test func aDirectoryThatCannotBeMadeIsSaid() {
        let error = refusal(in: "\(locks)/is/not/there")
        #expect(error?.code == .unavailable && error?.errno == ENOENT)
        #expect(error?.message.contains("XenDomain.Options.lockDirectory") == true)
    }

    @Test func nothingIsFollowedAndNothingIsWaitedFor() throws {
        let target = directory.path.appending("target").string
        mkdir(target, 0o700)
        symlink(target, locks)
        #expect(refusal()?.code == .unavailable, "a link in the directory's place")
        unlink(locks)
        do { withExtendedLifetime(try DomainLock(of: 7, in: locks)) {} }
        unlink(file)
        let precious = directory.path.appending("precious").string
        try "kept".write(toFile: precious, atomically: true, encoding: .utf8)
        symlink(precious, file)
        #expect(refusal()?.code == .unavailable, "a link in the file's place")
        #expect(try String(contentsOfFile: precious, encoding: .utf8) == "kept")
        unlink(file)
        mkfifo(file, 0o600)
        #expect(refusal()?.message.contains("not a regular file") == true)
        #expect(try FileManager.default.contentsOfDirectory(atPath: target).isEmpty)
    }

    @Test func aDirectoryThatOthersMayWriteIsNotTrusted() throws {
        mkdir(locks, 0o700)
        chmod(locks, 0o770)
        #expect(refusal()?.message.contains("mode 0700") == true)
        chmod(locks, 0o700)
        withExtendedLifetime(try DomainLock(of: 7, in: locks)) {}
        guard geteuid() == 0 else { return }
        chown(locks, 1234, 1234)
        #expect(refusal()?.message.contains("another user's") == true)
    }

    // MARK: - Two sessions

    enum Order: CaseIterable {
        case oldEndsAfterNewCaptured
        case oldEndsBeforeNewCaptured
    }

    /// Two sessions over views of one domain that do not know of each other.
    @Test(arguments: Order.allCases, [XenPauseMode.suspend, .pause])
    func whoSharesALogUnknowinglyMissesNoPage(order: Order, pauseMode: XenPauseMode) throws {
        for salt in UInt64(0)..<5 {
            let scene = try Scene(8760 + salt, pauseMode: pauseMode)
            let domain = try XenDomain(Scene.number, calls: scene.xen, options: scene.options)
            func session(_ lineage: String) throws -> CaptureSession {
                try CaptureSession(
                    of: AnotherView(of: domain), in: scene.repository,
                    lineage: LineageName(lineage),
                    options: scene.captureOptions)
            }
            func expectWhole(_ session: CaptureSession, _ note: String) throws {
                let checkpoint = try session.capture().checkpoint
                let wrong = try scene.differences(
                    checkpoint, scene.xen.with(Scene.number) { $0.still })
                #expect(wrong.isEmpty, "frames \(wrong.prefix(8)), \(note), salt \(salt)")
            }
            scene.write()
            var old: CaptureSession? = try session("old")
            if let old { try expectWhole(old, "the old one's first") }
            scene.write()
            let new = try session("new")
            if order == .oldEndsAfterNewCaptured { try expectWhole(new, "the new one's first") }
            scene.write()
            old = nil
            for turn in 0..<3 {
                scene.write()
                try expectWhole(new, "turn \(turn)")
            }
            new.close()
            scene.expectSound(isLogOn: false)
        }
    }
}
