import Foundation
import Glibc
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct HookedDisksTests {
    let home = TemporaryDirectory()

    /// A group whose command is a shell script with these lines for each verb.
    private func group(
        _ verbs: [String: String], deadlines: HookedDisks.Deadlines = .init()
    ) throws -> HookedDisks {
        var script = "#!/bin/sh\ncd \(home.path)\necho \"$*\" >>log\ncase $1 in\n"
        for (verb, lines) in verbs { script += "\(verb)) \(lines) ;;\n" }
        script += "esac\n"
        let path = home.path.appending("hook")
        // Written by another process: a program that this one starts meanwhile would have the file
        // open for writing, and the kernel would refuse to run it (ETXTBSY).
        let text = home.path.appending("text")
        try Data(script.utf8).write(to: URL(fileURLWithPath: text.string))
        shell("cp \(text) \(path); chmod +x \(path); rm \(text)")
        return try HookedDisks(
            command: [path.string], stateDirectory: home.path.appending("state"),
            deadlines: deadlines)
    }

    private func log() -> [String] {
        ((try? bytes(of: home.path.appending("log"))) ?? [])
            .split(separator: 10).map { String(decoding: $0, as: UTF8.self) }
    }

    private let disk = "echo '{\"disks\": [{\"name\": \"x\", \"bytes\": 8192}]}'"

    @Test func aCommandThatWorksIsAGroup() throws {
        let disks = try group([
            "disks": disk, "cut": "cp disk cut-$2; echo '{\"drain_milliseconds\": 0, \"new\": 1}'",
            "open": "echo '{\"path\": \"\(home.path)/cut-'$2'\"}'",
            "changed": "echo '{\"changed\": [{\"offset\": 4096, \"length\": 1, \"x\": [{}]}]}'",
            "release": "rm -f cut-$2",
        ])
        try write([UInt8](repeating: 7, count: 8192), to: home.path.appending("disk"), at: 0)
        #expect(try disks.disks() == [GuestDisk(name: "x", byteCount: 8192)])
        let cut = try disks.prepareCut()
        #expect(log() == ["disks", "disks"])
        #expect(try cut.cut(within: .seconds(10)).cut > .zero)
        try write([8], to: home.path.appending("disk"), at: 0)
        #expect(try contents(of: cut).allSatisfy { $0 == 7 })
        #expect(try cut.storedBlocks(ofDisk: 0) == [1..<2])
        let later = try disks.prepareCut()
        _ = try later.cut(within: .seconds(10))
        #expect(try later.changedBlocks(ofDisk: 0, since: cut) == [1..<2])
        let tokens = [cut, later].map { "varve-\($0.name.dropFirst(4))" }
        #expect(log().last == "changed \(tokens[1]) x \(tokens[0])")
        #expect(try disks.leftovers().map(\.isOwned) == [true, true])
        try cut.release()
        try later.release()
        #expect(log().last == "release \(tokens[1])")
        #expect(try names(in: home.path) == ["disk", "hook", "log", "state"])
        #expect(try disks.leftovers().isEmpty)
    }

    /// It owns the cut as long as it runs: this process may be killed meanwhile, and the next one
    /// must not release what is not made yet.
    @Test func aRunningCutHasTheLockOfItsEntry() throws {
        let disks = try group(["disks": disk, "cut": "ls -l /proc/$$/fd >fds; echo '{}'"])
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(10))
        let open = String(decoding: try bytes(of: home.path.appending("fds")), as: UTF8.self)
        #expect(open.contains("state/\(cut.name)"), "\(open)")
        try cut.release()

        let path = home.path.appending("lock")
        try write([1], to: path, at: 0)
        var file: OpenFile? = try OpenFile(path, O_RDWR)
        try #require(file).withDescriptor { descriptor in
            #expect(system_lock(descriptor) == 0)
            _ = try Program.run(
                ["/bin/sh", "-c", "sleep 2 & exit 0"], within: .seconds(20), inherited: descriptor
            ) { _ in }
        }
        // As the kernel closes it when this process is killed.
        file = nil
        let other = try OpenFile(path, O_RDWR)
        #expect(other.withDescriptor(system_lock) != 0)
        var waited = 0
        while other.withDescriptor(system_lock) != 0 && waited < 1000 {
            usleep(20_000)
            waited += 1
        }
        #expect(waited < 1000, "it is released with the last process")
    }

    @Test func failuresAreReportedInTheCommandsWords() throws {
        let disks = try group([
            "disks": disk, "cut": "echo first >&2; echo 'no\tspace left' >&2; exit 3",
        ])
        let cut = try disks.prepareCut()
        let error = #expect(throws: GuestError.self) { try cut.cut(within: .seconds(10)) }
        #expect(error?.message.contains("failed with status 3: first; no\\tspace left") == true)
        #expect(throws: GuestError.self) { try cut.storedBlocks(ofDisk: 0) }
        try cut.release()
        #expect(log().last?.hasPrefix("release varve-") == true)
        let none = try HookedDisks(
            command: ["/does/not/exist"], stateDirectory: home.path.appending("state"))
        let missing = #expect(throws: GuestError.self) { try none.disks() }
        #expect(missing?.code == .unsupported)
        #expect(throws: GuestError.self) {
            try HookedDisks(command: [], stateDirectory: home.path.appending("state"))
        }
    }

    @Test func aCommandThatHangsIsKilledWithItsChildren() throws {
        let disks = try group([
            "disks": disk, "cut": "sleep 60 & echo $! >child; wait", "release": "",
        ])
        let cut = try disks.prepareCut()
        let start = ContinuousClock.now
        let error = #expect(throws: GuestError.self) { try cut.cut(within: .milliseconds(300)) }
        #expect(error?.code == .timedOut)
        #expect(ContinuousClock.now - start < .seconds(20))
        let child = try #require(
            Int32(
                String(decoding: bytes(of: home.path.appending("child")).dropLast(), as: UTF8.self))
        )
        var waited = 0
        while shell("ps -o stat= -p \(child) | grep -v Z").status == 0 && waited < 100 {
            usleep(20_000)
            waited += 1
        }
        #expect(waited < 100, "the child has ended")
        try cut.release()
    }

    /// What stays in the background keeps its standard output, and nobody waits for it.
    @Test func whatACommandLeavesRunningIsNotWaitedFor() throws {
        let disks = try group(["disks": "sleep 25 & \(disk)"])
        let start = ContinuousClock.now
        #expect(try disks.disks().count == 1)
        #expect(ContinuousClock.now - start < .seconds(20))
    }

    @Test func wrongAnswersAreRefused() throws {
        let answers = [
            "", "x", "[]", "{}", "{\"disks\": 1}", "{\"disks\": [{}]}", "{\"disks\": []} {}",
            "{\"disks\": [{\"name\": \"a\", \"bytes\": 1000}]}",
            "{\"disks\": [{\"name\": \"a\", \"bytes\": 1024, \"sector\": 1024}]}",
            "{\"disks\": [{\"name\": \"a\", \"bytes\": -512}]}",
            "{\"disks\": [{\"name\": \"a\", \"bytes\": 5.12e2}]}",
            "{\"disks\": [{\"name\": \"\", \"bytes\": 512}]}",
            "{\"disks\": [{\"name\": \"a\", \"bytes\": 512}, {\"name\": \"a\", \"bytes\": 512}]}",
            "{\"disks\": [], \"disks\": []}", "{\"disks\": [",
        ]
        for answer in answers {
            let disks = try group(["disks": "printf '%s' '\(answer)'"])
            #expect(throws: GuestError.self, "\(answer)") { try disks.disks() }
            #expect(throws: GuestError.self, "\(answer)") { try disks.prepareCut() }
            #expect(try disks.leftovers().isEmpty)
        }
        let huge = try group(["disks": "head -c 70000000 /dev/zero"])
        let error = #expect(throws: GuestError.self) { try huge.disks() }
        #expect(error?.message.contains("64 MiB") == true)

        let disks = try group([
            "disks": disk, "cut": "cat answer", "open": "cat answer", "changed": "cat answer",
        ])
        func answer(_ text: String) throws {
            shell("rm -f \(home.path)/answer")
            try write(Array(text.utf8), to: home.path.appending("answer"), at: 0)
        }
        for wrong in ["{\"disks\": [{\"name\": \"y\", \"bytes\": 512}]}", "", "{\"disks\": null}"] {
            let cut = try disks.prepareCut()
            try answer(wrong)
            #expect(throws: GuestError.self) { try cut.cut(within: .seconds(10)) }
            try cut.release()
        }
        let cut = try disks.prepareCut()
        try answer("{\"disks\": [{\"name\": \"x\", \"bytes\": 12288}]}")
        _ = try cut.cut(within: .seconds(10))
        #expect(cut.disks[0].byteCount == 12288, "as it was at the cut")
        shell("truncate -s 8192 \(home.path)/small; mkdir \(home.path)/folder")
        for wrong in ["\(home.path)/small", "\(home.path)/folder", "relative", "/dev/null"] {
            try answer("{\"path\": \"\(wrong)\"}")
            #expect(throws: GuestError.self, "\(wrong)") { try contents(of: cut) }
        }
        for (text, expected) in [
            ("{\"changed\": null}", [0..<3]), ("{\"changed\": []}", []),
            (
                "{\"changed\": [{\"offset\": 8192, \"length\": 99999}, "
                    + "{\"offset\": 0, \"length\": 1}]}", [0..<1, 2..<3]
            ),
            ("{\"changed\": [{\"offset\": 99999, \"length\": 1}]}", []),
        ] as [(String, [BlockRange])] {
            try answer(text)
            #expect(try cut.storedBlocks(ofDisk: 0) == expected)
        }
        for wrong in [
            "{\"changed\": [{\"offset\": 1}]}", "{\"changed\": [[0, 1]]}", "{\"changed\": {}}",
            "{\"changed\": [{\"offset\": 18446744073709551615, \"length\": 1}]}",
            "{\"changed\": [{\"offset\": 18446744073709551616, \"length\": 0}]}",
        ] {
            try answer(wrong)
            #expect(throws: GuestError.self, "\(wrong)") { try cut.storedBlocks(ofDisk: 0) }
        }
        try cut.release()
    }

    @Test func leftoversAreReleased() throws {
        let verbs = [
            "disks": disk, "cut": "cp disk cut-$2; echo '{}'", "release": "rm -f cut-$2",
            "open": "[ -e cut-$2 ] && echo '{\"path\": \"\(home.path)/cut-'$2'\"}'",
        ]
        try write([UInt8](repeating: 7, count: 8192), to: home.path.appending("disk"), at: 0)
        var disks = try group(verbs)
        var cut: (any DiskCut)? = try disks.prepareCut()
        let name = try #require(cut?.name)
        _ = try cut?.cut(within: .seconds(10))
        _ = try cut.map { try contents(of: $0) }
        var second: (any DiskCut)? = try disks.prepareCut()
        _ = try second?.cut(within: .seconds(10))
        #expect(try disks.standingCut(name) == nil)
        withExtendedLifetime((cut, second)) {}
        (cut, second) = (nil, nil)

        disks = try group(verbs)
        let found = try #require(try disks.standingCut(name))
        #expect(try contents(of: found).count == 8192)
        #expect(try disks.dropLeftovers().count == 1)
        try found.release()
        #expect(try names(in: home.path) == ["disk", "hook", "log", "state"])
        #expect(try disks.standingCut(name) == nil)
    }

    // MARK: - The example for Ceph RBD

    @Test func theExampleForRBDCutsImages() throws {
        let here = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        let script = here.deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("Examples/Hooks/rbd-disks.sh")
        let rbd = home.path.appending("bin").appending("rbd")
        shell("mkdir \(home.path)/bin; cp \(here.path)/fake-rbd.sh \(rbd)")
        let images = ["pool-a", "pool-b"].map { home.path.appending($0) }
        for image in images {
            try write([UInt8](repeating: 5, count: 1 << 20), to: image, at: 0)
        }
        let disks = try HookedDisks(
            command: [
                "/usr/bin/env", "PATH=\(home.path)/bin:/usr/bin:/bin", "RBD=\(home.path)",
                script.path, "xvda=pool/a", "xvdb=pool/b",
            ], stateDirectory: home.path.appending("state"))
        #expect(try disks.disks().map(\.name) == ["xvda", "xvdb"])
        let cut = try disks.prepareCut()
        _ = try cut.cut(within: .seconds(30))
        let old = try bytes(of: images[1])
        try write([6], to: images[1], at: 200_000)
        #expect(try contents(of: cut, 1) == old)
        #expect(try cut.storedBlocks(ofDisk: 0) == [0..<256])
        let later = try disks.prepareCut()
        _ = try later.cut(within: .seconds(30))
        #expect(try later.changedBlocks(ofDisk: 0, since: cut)?.isEmpty == true)
        #expect(try later.changedBlocks(ofDisk: 1, since: cut) == [48..<64])
        try cut.release()
        try later.release()
        // One that was given up half-way.
        let half = try disks.prepareCut()
        shell("rm \(images[1])")
        #expect(throws: GuestError.self) { try half.cut(within: .seconds(30)) }
        try write([5], to: images[1], at: 0)
        try half.release()
        #expect(try names(in: home.path) == ["bin", "log", "pool-a", "pool-b", "state"])
        #expect(try disks.leftovers().isEmpty)
    }
}
