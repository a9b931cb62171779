import CheckpointEngine
import CheckpointStore
import Foundation
import SystemPackage
import Testing
import VarveTestSupport

/// `varve forget` with checkpoints taken while the clock was wrong.
@Suite(.enabled(if: Tool.isBuilt)) struct ClockCommandTests {
    private let directory = TemporaryDirectory()
    private var store: String { directory.path.appending("store").string }

    /// A repository with a checkpoint at each time, in seconds from now; returns their IDs.
    private func make(_ times: [Int]) throws -> [String] {
        let repository = try Repository.create(at: FilePath(store))
        let now = Int64(Date().timeIntervalSince1970) * 1_000_000_000
        let ids = try times.enumerated().map { number, time in
            var options = CaptureOptions()
            options.clock = { now + Int64(time) * 1_000_000_000 }
            var left = 4096
            let checkpoint = try repository.importImage(lineage: "web", options: options) {
                buffer in
                let count = min(left, buffer.count)
                for index in 0..<count { buffer[index] = UInt8(number + 1) }
                left -= count
                return count
            }
            return checkpoint.id.description
        }
        try repository.close()
        return ids
    }

    private func left() throws -> [String] {
        try Tool.run("log", store, "--json").objects.compactMap { $0["id"] as? String }
    }

    private let year = 365 * 86_400

    @Test func oneCheckpointOfTheFutureForgetsNoOther() throws {
        let ids = try make([-7000, -3000, 14 * year, -2000, -1000])
        for rule in [["--keep-within", "4000s"], ["--keep-hourly", "3"], ["--keep-daily", "1"]] {
            let dry = try Tool.run(["forget", store, "--dry-run", "--json"] + rule)
            let doubts = try dry.objects.map { $0["timeInDoubt"] as? String }
            if rule[0] == "--keep-within" {
                #expect(doubts == [nil, nil, "future", nil, nil])
                let gone = try dry.objects.map { $0["forgotten"] as? Bool }
                #expect(gone == [true, false, false, false, false])
            }
        }
        let done = try Tool.run("forget", store, "--keep-within", "4000s")
        #expect(done.status == 0)
        #expect(done.text.contains("1 checkpoint kept because the time is in doubt"))
        #expect(done.text.contains("time in doubt (later than the present)"))
        #expect(done.text.contains("varve forget STORE \(ids[2].prefix(12))"))
        #expect(Set(try left()) == Set(ids[1...]))
        // It can be forgotten by name.
        #expect(try Tool.run("forget", store, ids[2]).status == 0)
        #expect(Set(try left()) == [ids[1], ids[3], ids[4]])
    }

    /// The clock jumped by years, and the times do not tell that it was corrected.
    @Test func aJumpByYearsForgetsNothingBeforeIt() throws {
        let jump = 370 * 86_400
        let ids = try make([-jump - 9000, -jump - 100, -jump, -9000, -50])
        let done = try Tool.run("forget", store, "--keep-within", "1h")
        #expect(done.status == 0)
        #expect(Set(try left()) == [ids[1], ids[2], ids[4]])
        #expect(done.text.contains("2 checkpoints kept by rules that count what came before"))
    }

    @Test func aClockThatBeganAt1970ForgetsNothing() throws {
        let now = Int(Date().timeIntervalSince1970)
        let ids = try make([-9000, -600, 60 - now, 120 - now, -60])
        let done = try Tool.run("forget", store, "--keep-within", "15m")
        #expect(done.status == 0)
        #expect(Set(try left()) == Set(ids[1...]))
        #expect(done.text.contains("time in doubt (before 2025)"))
    }
}
