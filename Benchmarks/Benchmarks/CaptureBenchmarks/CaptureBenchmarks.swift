import Benchmark
import Foundation
import Glibc
import Measuring
import Varve

// Captures and reverts of this process's memory, each compared with copying the same pages.

let benchmarks: @Sendable () -> Void = {
    for gigabytes in [1, 2, 4, 8, 16] { guestSize(gigabytes) }
    for share in [0.001, 0.01, 0.1, 0.5, 1] { dirtyShare(share) }
    publishing()
    frequency("frequency.100", dirtyCount: 1000, seconds: 60)
    frequency("frequency.level", dirtyCount: 1000, seconds: 60, levels: heartbeatLevels)
    for dirtyCount in [100, 300, 600] {
        frequency(
            "frequency.dirty.\(dirtyCount)", dirtyCount: dirtyCount, seconds: 20,
            levels: heartbeatLevels)
    }
    revert()
    metadata()
}

private let mebibyte = 1 << 20

// MARK: - The pause

/// The pause with 1 % of a guest dirty, all of it copied in the pause.
private func guestSize(_ gigabytes: Int) {
    let unit = Settings.sized(1 << 30, quick: 64 * mebibyte)
    let byteCount = gigabytes * unit
    // The guest, the page map and the captures' buffers, and room for the machine.
    guard byteCount + byteCount / 16 + (2 << 30) <= ResidentMemory.available else { return }
    let dirtyCount = byteCount / Page.byteCount / 100
    compare(
        "size.\(gigabytes)",
        "pause with 1 % of \(byteCount / mebibyte) MiB dirty (\(dirtyCount) pages)",
        rounds: Settings.sized(15, quick: 3)
    ) { run in
        var options = CaptureOptions()
        options.pauseBudget = .seconds(60)
        return try CaptureSubject(
            byteCount: byteCount, repeats: true, directory: run.directory, options: options,
            targetByteCount: dirtyCount * Page.byteCount)
    } finish: { subject, run in
        subject.noteMemory(run)
    } round: { subject, run in
        try pauseRound(subject, run, dirtyCount: dirtyCount, x: Double(byteCount) / Double(1 << 30))
    }
}

/// One pause, and before it the minimal work of a pause, over the same pages.
private func pauseRound(
    _ subject: CaptureSubject, _ run: Comparison, dirtyCount: Int, x: Double
) throws {
    let byteCount = dirtyCount * Page.byteCount
    // The pages that the limit takes from the log are written again, so that the capture sees them.
    subject.write(pages: dirtyCount)
    var bitmap = DirtyBitmap()
    let start = ContinuousClock.now
    try subject.take(into: &bitmap)
    let taken = ContinuousClock.now
    let copied = subject.copy(bitmap.runs())
    let end = ContinuousClock.now
    guard copied == dirtyCount else {
        throw Child.Failure(description: "the log named \(copied) of \(dirtyCount) pages")
    }
    subject.write(pages: dirtyCount)
    let pending = try subject.session.begin()
    run.add(
        "pause", .subject, seconds: pending.pauseTimes.downtime.seconds, byteCount: byteCount,
        at: (x, "pause"))
    run.add(
        "take the log and memcpy the pages", .limit, seconds: (end - start).seconds,
        byteCount: byteCount, at: (x, "take the log and memcpy the pages"))
    run.add(
        "of that, the memcpy", .limit, seconds: (end - taken).seconds, byteCount: byteCount,
        at: (x, "of that, the memcpy"))
    let result = try pending.wait()
    guard result.pausedPageCount == dirtyCount else {
        throw Child.Failure(description: "the pause copied \(result.pausedPageCount) pages")
    }
}

// MARK: - Dirty share

/// A capture with a share of 1 GiB dirty, with the default options.
private func dirtyShare(_ share: Double) {
    let byteCount = Settings.sized(1 << 30, quick: 64 * mebibyte)
    let dirtyCount = max(1, Int(Double(byteCount / Page.byteCount) * share))
    let dirtyBytes = dirtyCount * Page.byteCount
    let percent = share * 100
    compare(
        "share.\(percent.formatted())",
        "capture of \(byteCount / mebibyte) MiB, \(percent.formatted()) % dirty",
        rounds: Settings.sized(share < 0.5 ? 9 : 4, quick: 2)
    ) { run in
        // First, so that this memory is not counted as the session's.
        let disk = try DiskLimit(directory: run.directory, byteCountMax: dirtyBytes)
        let subject = try CaptureSubject(
            byteCount: byteCount, directory: run.directory, targetByteCount: dirtyBytes)
        return (subject, disk)
    } finish: { subject, run in
        subject.0.noteMemory(run)
    } round: { both, run in
        let (subject, disk) = both
        subject.write(pages: dirtyCount)
        let result = try run.time("until durable", .subject, byteCount: dirtyBytes) {
            try subject.session.capture()
        }
        run.add(
            "pause", .part, seconds: result.pause.seconds, byteCount: dirtyBytes,
            at: (percent, "pause"))
        run.note("pages copied in the pause", Double(result.pausedPageCount), "pages")
        run.note(
            "metadata a dirty page",
            Double(result.checkpoint.metadataByteCount) / Double(dirtyCount), "bytes")
        let runs = (0..<dirtyCount).map { subject.page($0) }.sorted().map {
            PageRange(first: PageFrameNumber(UInt64($0)), count: 1)
        }
        run.limit("memcpy of the pages", byteCount: dirtyBytes) { _ = subject.copy(runs) }
        try run.limit("write and fdatasync of what was stored", byteCount: nil) {
            try disk.write(min(result.checkpoint.addedByteCount, dirtyBytes))
        }
    }
}

// MARK: - Publishing

/// From `begin` to durable, with 1,000 dirty pages.
private func publishing() {
    let byteCount = Settings.sized(1 << 30, quick: 64 * mebibyte)
    let dirtyCount = 1000
    compare(
        "capture.published", "1,000 dirty pages of \(byteCount / mebibyte) MiB, until durable",
        rounds: Settings.sized(100, quick: 10)
    ) { run in
        // First, so that this memory is not counted as the session's.
        let disk = try DiskLimit(
            directory: run.directory, byteCountMax: 2 * dirtyCount * Page.byteCount)
        let subject = try CaptureSubject(
            byteCount: byteCount, directory: run.directory,
            targetByteCount: dirtyCount * Page.byteCount)
        return (subject, disk)
    } finish: { subject, run in
        subject.0.noteMemory(run)
    } round: { both, run in
        let (subject, disk) = both
        subject.write(pages: dirtyCount)
        let result = try run.subject(
            "until durable", byteCount: dirtyCount * Page.byteCount
        ) { try subject.session.capture() }
        run.add("pause", .part, seconds: result.pause.seconds)
        try run.limit("write and fdatasync of what was stored") {
            try disk.write(result.checkpoint.addedByteCount)
        }
        run.note("stored", Double(result.checkpoint.addedByteCount), "bytes")
    }
}

// MARK: - Frequency

/// Compression levels for checkpoints as frequent as the machine allows.
private let heartbeatLevels = CompressionLevel.stored...CompressionLevel(rawValue: 3)

/// 100 durable checkpoints a second, for some time.
///
/// - Parameter levels: the range from which the session chooses; nil: always the default.
private func frequency(
    _ id: String, dirtyCount: Int, seconds: Int, levels: ClosedRange<CompressionLevel>? = nil
) {
    let seconds = Settings.sized(seconds, quick: 3)
    let byteCount = Settings.sized(1 << 30, quick: 64 * mebibyte)
    compare(
        id,
        "\(seconds) s of a checkpoint every 10 ms, \(byteCount / mebibyte) MiB, "
            + "\(dirtyCount) dirty pages each, "
            + (levels == nil ? "default level" : "level as time allows"),
        rounds: 1
    ) { run in
        var options = CaptureOptions()
        options.compressionRange = levels
        return try CaptureSubject(
            byteCount: byteCount, directory: run.directory, options: options,
            targetByteCount: dirtyCount * Page.byteCount)
    } finish: { subject, run in
        subject.noteMemory(run)
    } round: { subject, run in
        let beat = Heartbeat(subject, interval: .milliseconds(10), dirtyCount: dirtyCount)
        let outcome = try beat.run(for: .seconds(seconds))
        for pause in outcome.pauses {
            run.add(
                "pause", .subject, seconds: pause, byteCount: dirtyCount * Page.byteCount)
        }
        for time in outcome.published { run.add("until durable", .part, seconds: time) }
        run.note("checkpoints", Double(outcome.pauses.count), "checkpoints")
        run.note("from the first begin to the last durable", outcome.seconds, "s")
        run.note(
            "durable checkpoints a second", Double(outcome.pauses.count) / outcome.seconds, "1/s")
        run.note("began over 10 ms late", Double(outcome.lateCount), "checkpoints")
        run.note("stored a second", outcome.storedByteCount / outcome.seconds, "bytes")
        for _ in 0..<200 {
            subject.write(pages: dirtyCount)
            try run.limit(
                "take the log and memcpy the pages", byteCount: dirtyCount * Page.byteCount
            ) { _ = try subject.takeAndCopy() }
        }
        let disk = try DiskLimit(directory: run.directory, byteCountMax: 16 * mebibyte)
        let each = Int(outcome.storedByteCount) / max(1, outcome.pauses.count)
        for _ in 0..<200 {
            try run.limit("write and fdatasync of what one stored") { try disk.write(each) }
        }
    }
}

// MARK: - Revert

/// Reverts to a checkpoint from which 1 % of 1 GiB differs.
private func revert() {
    let byteCount = Settings.sized(1 << 30, quick: 64 * mebibyte)
    let dirtyCount = byteCount / Page.byteCount / 100
    compare(
        "revert.1", "revert in place of 1 % of \(byteCount / mebibyte) MiB (\(dirtyCount) pages)",
        rounds: Settings.sized(25, quick: 3)
    ) { run in
        // The limit's memory first, so that it is not counted as the session's.
        let other = Memory(byteCount: byteCount)
        let subject = try CaptureSubject(
            byteCount: byteCount, directory: run.directory,
            targetByteCount: dirtyCount * Page.byteCount)
        return (subject, other)
    } finish: { subject, run in
        subject.0.noteMemory(run)
    } round: { both, run in
        let (subject, other) = both
        subject.write(pages: dirtyCount)
        let start = ContinuousClock.now
        let result = try subject.session.revert(to: subject.first)
        let whole = (ContinuousClock.now - start).seconds
        guard result.writtenPageCount == dirtyCount else {
            throw Child.Failure(description: "\(result.writtenPageCount) pages were written")
        }
        let bytes = dirtyCount * Page.byteCount
        run.add("downtime", .subject, seconds: result.pause.seconds, byteCount: bytes)
        run.add("whole, with reading and checking", .part, seconds: whole, byteCount: bytes)
        run.limit("memcpy of the pages to their places", byteCount: bytes) {
            guard let to = other.bytes.baseAddress, let from = subject.target.bytes.baseAddress
            else { return }
            for index in 0..<dirtyCount {
                memcpy(
                    to + subject.page(index) * Page.byteCount, from + index * Page.byteCount,
                    Page.byteCount)
            }
        }
        run.note("pages written", Double(result.writtenPageCount), "pages")
        run.note("pages compared", Double(result.comparedPageCount), "pages")
    }
}

// MARK: - Metadata

/// 1,000 random pages of a large guest, repeatedly.
private func metadata() {
    let gigabytes = Settings.sized(64, quick: 1)
    let count = Settings.sized(129, quick: 17)
    compare(
        "metadata.random", "1,000 random dirty pages of \(gigabytes) GiB, \(count) checkpoints",
        rounds: 1
    ) { run in
        let guest = SparseGuest(pageCount: gigabytes << 18)
        let repository = try Repository.create(at: FilePath(run.directory + "/store"))
        let session = try CaptureSession(of: guest, in: repository, lineage: "sparse")
        _ = try session.capture()
        return (guest, session)
    } round: { both, run in
        let (guest, session) = both
        var total = 0
        var plain = Int.max
        for _ in 0..<count {
            guest.dirty(1000)
            let checkpoint = try run.subject("capture, until durable") {
                try session.capture().checkpoint
            }
            guard checkpoint.changedPageCount > 990 else {
                throw Child.Failure(description: "\(checkpoint.changedPageCount) pages changed")
            }
            let bytes = checkpoint.metadataByteCount * 1000 / checkpoint.changedPageCount
            plain = min(plain, bytes)
            total += bytes
        }
        run.note("a plain delta", Double(plain) / 1000, "bytes a dirty page")
        run.note("on average", Double(total) / 1000 / Double(count), "bytes a dirty page")
        session.close()
    }
}
