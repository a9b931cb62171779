import Benchmark
import Foundation
import Glibc
import Measuring
import Synchronization
import Varve

// The cost of a repository with a long history: restore anywhere in a chain, verify, prune.

let benchmarks: @Sendable () -> Void = {
    for writes in Chain.Writes.allCases { restore(writes) }
    verify()
    prune(chain: Settings.sized(100, quick: 20), forgetting: 1)
    prune(chain: Settings.sized(1000, quick: 40), forgetting: 1)
    prune(chain: Settings.sized(1000, quick: 40), forgetting: Settings.sized(990, quick: 30))
}

private let mebibyte = 1 << 20

// MARK: - Restore

/// Checkpoints of a chain, restored in turn.
private func restore(_ writes: Chain.Writes) {
    let byteCount = Settings.sized(256 * mebibyte, quick: 32 * mebibyte)
    let length = Settings.sized(2500, quick: 100)
    let places = [1, 10, 100, 1000, 2500].filter { $0 < length } + [length]
    let order = Mutex(places)
    compare(
        "chain.\(writes)",
        "restore in a chain of \(length), \(byteCount / mebibyte) MiB, 200 pages dirty in each, "
            + (writes == .sixteenth ? "writes to a sixteenth of it" : "writes all over it"),
        rounds: Settings.sized(11, quick: 2)
    ) { run in
        var taken: [Double] = []
        let chain = try Chain(
            count: length, byteCount: byteCount, dirtyCount: 200, writes: writes,
            directory: run.directory
        ) { _, seconds in taken.append(seconds) }
        return (chain, taken, Memory(byteCount: byteCount))
    } finish: { state, run in
        let (chain, taken, _) = state
        // The duration of a capture at the beginning and at the end of the chain.
        for place in places where place > 1 {
            for seconds in taken[max(0, place - 51)..<min(taken.count, place)] {
                run.add(
                    "capture about checkpoint \(place)", .part, seconds: seconds,
                    at: (Double(place), "capture, \(writes)"))
            }
        }
        let statistics = try chain.repository.statistics()
        run.note("repository", Double(statistics.byteCount), "bytes")
        run.note(
            "metadata a changed page", statistics.metadataBytesPerChangedPage, "bytes")
    } round: { state, run in
        let (chain, _, other) = state
        // The order rotates, because the contents of the caches differ for the first one.
        order.withLock { $0.append($0.removeFirst()) }
        for place in order.withLock({ $0 }) {
            let start = ContinuousClock.now
            let result = try chain.restore(place)
            run.add(
                "checkpoint \(place)", place == length ? .subject : .part,
                seconds: (ContinuousClock.now - start).seconds, byteCount: byteCount,
                at: (Double(place), "restore, \(writes)"))
            run.note("maps read, checkpoint \(place)", Double(result.mapsRead), "maps")
            run.note("bytes read, checkpoint \(place)", Double(result.bytesRead), "bytes")
        }
        run.limit("memcpy of the whole memory", byteCount: byteCount) {
            if let memory = chain.memory { other.copy(from: memory) }
        }
    }
}

// MARK: - Verify

/// A full verify, compared with zstd's own test of the same pages.
private func verify() {
    let byteCount = Settings.sized(512 * mebibyte, quick: 64 * mebibyte)
    compare(
        "verify.full",
        "verification of a checkpoint of \(byteCount / mebibyte) MiB, every byte and page",
        rounds: Settings.sized(9, quick: 2)
    ) { run in
        let memory = try Memory.guest(byteCount: byteCount)
        let repository = try Repository.create(at: FilePath(run.directory + "/store"))
        var offset = 0
        _ = try repository.importImage(lineage: "verify") { room in
            let count = min(room.count, byteCount - offset)
            room.copyMemory(
                from: UnsafeRawBufferPointer(
                    rebasing: UnsafeRawBufferPointer(memory.bytes)[offset..<offset + count]))
            offset += count
            return count
        }
        let file = run.directory + "/pages"
        try memory.write(to: file)
        _ = try Child.run(["zstd", "-1", "-q", file, "-o", file + ".zst"])
        return (repository, file)
    } round: { both, run in
        let (repository, file) = both
        let report = try run.subject("verify", byteCount: byteCount) { try repository.verify() }
        guard report.isClean, report.pageCount == byteCount / Page.byteCount else {
            throw Child.Failure(description: "verify found \(report.findings)")
        }
        let test = try Child.run(["zstd", "-t", "-q", file + ".zst"])
        run.add(
            "zstd -t of the pages as one stream", .limit, seconds: test.seconds,
            byteCount: byteCount)
        if Child.exists("b3sum") {
            let digest = try Child.run(["b3sum", "--num-threads", "1", file])
            run.add(
                "zstd -t, then b3sum --num-threads 1 of the pages", .limit,
                seconds: test.seconds + digest.seconds, byteCount: byteCount)
        }
    }
}

// MARK: - Prune

/// Forget and prune, in a new repository.
private func prune(chain length: Int, forgetting victims: Int) {
    let byteCount = Settings.sized(128 * mebibyte, quick: 16 * mebibyte)
    compare(
        "prune.\(victims)of\(length)",
        "prune after forgetting \(victims) of \(length) checkpoints, \(byteCount / mebibyte) MiB",
        rounds: 1
    ) { run in
        try Chain(
            count: length, byteCount: byteCount, dirtyCount: 500, writes: .sixteenth,
            directory: run.directory)
    } round: { chain, run in
        let repository = chain.repository
        // From the middle, so that both ends are kept.
        let first = (length - victims) / 2
        let ids = chain.checkpoints[first..<first + victims].map(\.id)
        let start = ContinuousClock.now
        try repository.forget(ids)
        let forgotten = ContinuousClock.now
        let plan = try repository.planPrune(PruneOptions(unusedPercentMax: 0))
        let planned = ContinuousClock.now
        try plan.execute()
        let done = ContinuousClock.now
        run.add("forget, plan and free", .subject, seconds: (done - start).seconds)
        run.add("forget", .part, seconds: (forgotten - start).seconds)
        run.add("plan", .part, seconds: (planned - forgotten).seconds)
        run.add("free", .part, seconds: (done - planned).seconds)
        run.note("repository before", Double(plan.byteCount), "bytes")
        run.note("freed", Double(plan.freedByteCount), "bytes")
        run.note("copied", Double(plan.copiedByteCount), "bytes")
        run.note("dead pages", Double(plan.deadPageCount), "pages")
        let read = try Child.run(
            ["sh", "-c", "cat \"$0\"/store/packs/*.pack > /dev/null", run.directory])
        run.add("cat of the packs that are left", .limit, seconds: read.seconds)
    }
}
