import CheckpointEngine
import CheckpointStore
import Glibc
import PackStore
import Testing
import VarveTestSupport

/// Operations on a store, in each call of which a crash must lose nothing.
struct CrashScenario: Sendable, CustomTestStringConvertible {
    let name: String
    var packByteCountMax = Repository.packByteCountMax
    /// The preparation; its calls are not crash points.
    var prepare: @Sendable (CrashWorld) throws -> Void = { _ in }
    /// The operations.
    let act: @Sendable (CrashWorld) throws -> Void
    /// True if several threads call the disk: then the index cannot be copied between two calls.
    var isConcurrent = false
    /// The largest size that abandoned transactions may keep until a prune: what they sealed, and
    /// their records in a pack before another transaction's publication.
    var abandonedByteCountMax = 80 << 10
    /// True if the store is damaged beforehand, and must be repaired.
    var isDamaged = false

    var testDescription: String { name }

    /// Packs that hold about twenty pages.
    private static let smallPack = (256 + 80) << 10

    private static func capturing(_ count: Int) -> @Sendable (CrashWorld) throws -> Void {
        { world in
            try world.create()
            for step in 0..<count {
                world.write("web", step..<step + 12, value: step)
                try world.capture()
            }
        }
    }

    /// Damages a page, a pack's index, a whole pack that others do not need and the last record,
    /// and adds a file that is not a pack.
    private static func damage(_ image: inout DiskImage) {
        let packs = (image.names(StoreDirectory.packs) ?? []).sorted()
        func path(_ position: Int) -> String { "\(StoreDirectory.packs)/\(packs[position])" }
        // In the first page group, after its head: a page that is in a block of its own.
        _ = image.flipBit(path(0), byte: 30_000, bit: 3)
        let count = image.contents(path(1))?.count ?? 0
        _ = image.flipBit(path(1), byte: count - 40, bit: 5)
        image.lose(path(packs.count - 2))
        let last = image.contents(path(packs.count - 1))?.count ?? 0
        _ = image.flipBit(path(packs.count - 1), byte: last / 2, bit: 1)
        image.put("\(StoreDirectory.packs)/notes.txt", Array("notes".utf8))
    }

    /// All scenarios, or the one that VARVE_SCENARIO names.
    static let wanted: [CrashScenario] = {
        guard let name = getenv("VARVE_SCENARIO").map({ String(cString: $0) }) else { return all }
        return all.filter { $0.name == name }
    }()

    static let all: [CrashScenario] = [
        CrashScenario(name: "first import") { world in
            try world.create()
            world.write("web", 0..<40, value: 1)
            try world.importImage("web")
        },
        CrashScenario(name: "incremental capture", prepare: capturing(1)) { world in
            for step in 1...3 {
                world.write("web", step * 5..<step * 5 + 8, value: 10 + step)
                try world.capture()
            }
        },
        CrashScenario(name: "seal", packByteCountMax: smallPack, prepare: capturing(1)) { world in
            for step in 1...3 {
                world.write("web", 0..<36, value: 20 + step)
                try world.capture()
            }
        },
        CrashScenario(
            name: "disks", packByteCountMax: smallPack,
            prepare: { world in
                try world.create()
                world.setDisks("web", ["xvda": 0..<12], value: 200)
                world.write("web", 0..<9, value: 201)
                try world.capture()
            },
            act: { world in
                // Another block, a second disk, a failed read, and the first disk is removed.
                world.setDisks("web", ["xvda": 3..<7], value: 202)
                try world.capture()
                world.setDisks("web", ["xvda": 12..<14, "xvdb": 0..<9], value: 203)
                world.write("web", 5..<9, value: 204)
                try world.capture()
                world.disks("web").fail(.read, after: 1)
                world.setDisks("web", ["xvda": 0..<4, "xvdb": 2..<4], value: 205)
                try world.capture()
                world.setDisks("web", ["xvdb": 7..<11], value: 206)
                try world.capture()
                try world.forget([0, 1])
                try world.prune()
                world.close()
            }, abandonedByteCountMax: 200 << 10),
        CrashScenario(
            name: "index rebuild", packByteCountMax: smallPack,
            prepare: { world in
                try capturing(5)(world)
                world.close()
                world.deleteIndex()
            },
            act: { world in
                try world.open()
                world.write("web", 0..<9, value: 30)
                try world.capture()
                world.close()
            }),
        CrashScenario(name: "label", prepare: capturing(1)) { world in
            for label in ["before", "after", "before"] {
                world.write("web", 3..<6, value: label.count)
                try world.capture(label: label)
            }
        },
        CrashScenario(
            name: "two lineages at once", packByteCountMax: smallPack,
            prepare: { world in
                try capturing(1)(world)
                world.write("mail", 0..<12, value: 40)
                try world.capture("mail")
            },
            act: { world in
                Threads.concurrently(2) { thread in
                    let lineage = thread == 0 ? "web" : "mail"
                    for step in 0..<3 {
                        world.write(lineage, step..<step + 9, value: 50 + thread * 10 + step)
                        // Failures are noted there.
                        _ = try? world.capture(lineage)
                    }
                }
            }, isConcurrent: true, abandonedByteCountMax: 200 << 10),
        CrashScenario(name: "close", prepare: capturing(1)) { world in
            world.write("web", 0..<5, value: 60)
            try world.capture()
            world.close()
            try world.open()
            world.close()
            try world.open()
            world.write("web", 2..<7, value: 61)
            try world.capture()
            world.close()
        },
        CrashScenario(name: "branch", prepare: capturing(4)) { world in
            let first = try world.checkpoint(named: "web~2")
            world.write("branch", 0..<20, value: 70)
            try world.capture("branch", parent: first)
            world.write("branch", 5..<9, value: 71)
            try world.capture("branch")
            world.write("web", 5..<9, value: 72)
            try world.capture()
        },
        CrashScenario(
            name: "abandon", packByteCountMax: smallPack, prepare: capturing(2),
            act: { world in
                for call in [6, 7] {
                    world.write("web", 0..<40, value: 80 + call)
                    world.guest("web").failCall(call)
                    try world.capture()
                    world.guest("web").failCall(nil)
                    try world.capture()
                }
            }, abandonedByteCountMax: 360 << 10),
        CrashScenario(name: "failed import", packByteCountMax: smallPack, prepare: capturing(2)) {
            world in
            for step in 0..<2 {
                // More than fills two packs, in addition to the room in the open one.
                world.write("web", 0..<44, value: 90 + step)
                try world.failImport("web")
                if step == 0 { try world.capture() }
            }
            world.write("web", 0..<5, value: 95)
            try world.capture()
        },
        CrashScenario(name: "forget", packByteCountMax: smallPack, prepare: capturing(6)) { world in
            // The first, one in the middle, then two at once with a branch point.
            try world.forget([0])
            world.write("web", 5..<9, value: 100)
            try world.capture()
            try world.forget([2])
            try world.capture("branch", parent: try world.checkpoint(named: "web"))
            try world.forget([3, 6])
            world.write("branch", 5..<9, value: 101)
            try world.capture("branch")
        },
        CrashScenario(
            name: "label afterwards", packByteCountMax: smallPack, prepare: capturing(4)
        ) { world in
            try world.label(1, "good")
            world.write("web", 5..<9, value: 105)
            try world.capture()
            try world.label(1, "better")
            try world.label(3, "good")
            try world.label(1, nil)
            world.close()
            try world.open()
            try world.label(0, "better")
            try world.forget([1, 3])
            try world.prune()
            world.close()
        },
        CrashScenario(
            name: "prune", packByteCountMax: smallPack,
            prepare: { world in
                try capturing(8)(world)
                try world.forget([0, 2, 3, 5])
            },
            act: { world in
                try world.prune()
                world.write("web", 0..<9, value: 110)
                try world.capture()
                try world.forget([6])
                try world.prune()
                world.close()
            }),
        CrashScenario(
            name: "prune beside captures", packByteCountMax: smallPack,
            prepare: { world in
                try capturing(8)(world)
                try world.forget([0, 2, 3, 5])
            },
            act: { world in
                Threads.concurrently(2) { thread in
                    for step in 0..<3 {
                        // Failures are noted there.
                        if thread == 0 {
                            try? world.prune()
                            try? world.forget([[1, 4, 6][step]])
                        } else {
                            world.write("web", step..<step + 9, value: 120 + step)
                            _ = try? world.capture()
                        }
                    }
                }
            }, isConcurrent: true, abandonedByteCountMax: 200 << 10),
        CrashScenario(
            name: "overlapping captures", packByteCountMax: smallPack, prepare: capturing(2),
            act: { world in
                for round in 0..<2 {
                    try world.captureOverlapping(3, "web") { step in
                        let first = 7 * round + 3 * step
                        world.write("web", first..<first + 9, value: 140 + 10 * round + step)
                    }
                    try world.capture()
                }
            }, isConcurrent: true, abandonedByteCountMax: 200 << 10),
        CrashScenario(
            name: "repair", packByteCountMax: smallPack,
            prepare: { world in
                try capturing(9)(world)
                let first = try world.checkpoint(named: "web~5")
                world.write("branch", 0..<20, value: 130)
                try world.capture("branch", parent: first)
                world.write("branch", 5..<9, value: 131)
                try world.capture("branch")
                try world.forget([2, 4])
                try world.damage { CrashScenario.damage(&$0) }
            },
            act: { world in
                try world.repair()
                world.write("web", 0..<9, value: 132)
                try world.capture()
                world.close()
            }, abandonedByteCountMax: 600 << 10, isDamaged: true),
        CrashScenario(
            name: "reader rebuilds", packByteCountMax: smallPack,
            prepare: { world in
                try capturing(4)(world)
                world.kill()
                world.deleteIndex()
            },
            act: { world in
                try world.read()
                try world.open()
                world.write("web", 0..<9, value: 90)
                try world.capture()
                try world.read()
            }),
    ]
}
