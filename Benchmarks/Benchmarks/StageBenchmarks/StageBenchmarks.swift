import Benchmark
import Foundation
import Glibc
import Measuring
import Synchronization
import Varve
import _VarveStages

// The stages of a capture and of a restore, one at a time: copy, zero test, digest, encode, decode,
// index. One thread each unless stated otherwise.

let benchmarks: @Sendable () -> Void = {
    copyBenchmarks()
    zeroBenchmarks()
    digestBenchmarks()
    encodeBenchmarks()
    coresBenchmarks()
    decodeBenchmarks()
    indexBenchmarks()
}

// MARK: - Copy

private func copyBenchmarks() {
    let byteCount = Settings.sized(256 << 20, quick: 32 << 20)
    let rounds = Settings.sized(15, quick: 3)

    compare("copy.pages", "scattered pages into a pool, page by page", rounds: rounds) { _ in
        (Memory(byteCount: byteCount), Memory(byteCount: byteCount))
    } round: { memories, run in
        let (source, target) = memories
        let pageCount = byteCount / Page.byteCount
        let pages = (0..<pageCount).map { $0 * 7919 % pageCount }
        run.subject("streaming copy of scattered pages", byteCount: byteCount) {
            Kernels.streamCopy(
                pages: pages, of: UnsafeRawBufferPointer(source.bytes), to: target.bytes)
        }
        run.time("memcpy of scattered pages", .part, byteCount: byteCount) {
            for (index, page) in pages.enumerated() { copyPage(source, page, target, index) }
        }
        run.time("streaming copy of the whole", .part, byteCount: byteCount) {
            Kernels.streamCopy(UnsafeRawBufferPointer(source.bytes), to: target.bytes)
        }
        run.limit("memcpy of the whole", byteCount: byteCount) {
            target.copy(from: source.bytes)
        }
    }

    cachesBenchmark(rounds: rounds)

    compare(
        "copy.mapping", "pages of another's memory, mapped and unmapped", rounds: rounds
    ) { _ in
        (try SharedMemory(byteCount: byteCount), Memory(byteCount: byteCount))
    } round: { memories, run in
        let (shared, target) = memories
        try run.subject("map, copy, unmap", byteCount: byteCount) {
            let mapping = try shared.map(populate: false)
            target.copy(from: UnsafeMutableRawBufferPointer(start: mapping, count: byteCount))
            munmap(mapping, byteCount)
        }
        try run.time("map at once (MAP_POPULATE), copy, unmap", .part, byteCount: byteCount) {
            let mapping = try shared.map(populate: true)
            target.copy(from: UnsafeMutableRawBufferPointer(start: mapping, count: byteCount))
            munmap(mapping, byteCount)
        }
        run.limit("memcpy, mapped before", byteCount: byteCount) {
            target.copy(
                from: UnsafeMutableRawBufferPointer(start: shared.standing, count: byteCount))
        }
    }
}

/// How much of a guest's working set a copy leaves in the caches: the set is read right after it.
private func cachesBenchmark(rounds: Int) {
    let workingSet = 1 << 20
    // 1 % of 1 GiB, as in a pause.
    let byteCount = 2621 * Page.byteCount
    compare(
        "copy.caches", "reading 1 MiB that was in the caches, after copying 2,621 pages",
        rounds: rounds
    ) { _ in
        (
            Memory(byteCount: byteCount), Memory(byteCount: byteCount),
            Memory(byteCount: workingSet)
        )
    } round: { memories, run in
        let (source, target, set) = memories
        func warm() {
            for _ in 0..<4 { _ = Kernels.zeroPageCount(UnsafeRawBufferPointer(set.bytes)) }
        }
        set.clear()
        warm()
        Kernels.streamCopy(UnsafeRawBufferPointer(source.bytes), to: target.bytes)
        _ = run.subject("after a streaming copy", byteCount: workingSet) {
            Kernels.zeroPageCount(UnsafeRawBufferPointer(set.bytes))
        }
        warm()
        target.copy(from: source.bytes)
        _ = run.time("after memcpy", .part, byteCount: workingSet) {
            Kernels.zeroPageCount(UnsafeRawBufferPointer(set.bytes))
        }
        warm()
        _ = run.limit("after no copy", byteCount: workingSet) {
            Kernels.zeroPageCount(UnsafeRawBufferPointer(set.bytes))
        }
    }
}

private func copyPage(_ source: Memory, _ page: Int, _ target: Memory, _ place: Int) {
    guard let from = source.bytes.baseAddress, let to = target.bytes.baseAddress else { return }
    (to + place * Page.byteCount).copyMemory(
        from: from + page * Page.byteCount, byteCount: Page.byteCount)
}

/// Memory that can be mapped repeatedly.
private final class SharedMemory {
    private let file: Int32
    private let byteCount: Int
    /// A permanent mapping.
    let standing: UnsafeMutableRawPointer

    init(byteCount: Int) throws {
        // glibc's memfd_create is not visible from Swift; a file in /dev/shm replaces it.
        let path = "/dev/shm/varve-benchmark-\(getpid())"
        file = open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
        guard file >= 0 else { throw POSIXError(.ENOENT) }
        unlink(path)
        guard ftruncate(file, off_t(byteCount)) == 0,
            let mapping = mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0),
            mapping != MAP_FAILED
        else { throw POSIXError(.ENOMEM) }
        memset(mapping, 1, byteCount)
        standing = mapping
        self.byteCount = byteCount
    }

    deinit {
        munmap(standing, byteCount)
        close(file)
    }

    func map(populate: Bool) throws -> UnsafeMutableRawPointer {
        let flags = MAP_SHARED | (populate ? Int32(MAP_POPULATE) : 0)
        guard let mapping = mmap(nil, byteCount, PROT_READ, flags, file, 0), mapping != MAP_FAILED
        else { throw POSIXError(.ENOMEM) }
        return mapping
    }
}

// MARK: - Zero test

private func zeroBenchmarks() {
    let byteCount = Settings.sized(256 << 20, quick: 32 << 20)
    for isZero in [true, false] {
        compare(
            "zero.\(isZero ? "zero" : "guest")",
            "zero test of \(isZero ? "pages that are zero" : "a guest's pages that are not")",
            rounds: Settings.sized(15, quick: 3)
        ) { _ in
            let memory = Memory(byteCount: byteCount)
            if isZero {
                memory.clear()
            } else {
                try GuestContent.fill(memory.bytes)
            }
            return (memory, Memory(byteCount: byteCount))
        } round: { memories, run in
            let (memory, other) = memories
            let found = run.subject("zero test", byteCount: byteCount) {
                Kernels.zeroPageCount(UnsafeRawBufferPointer(memory.bytes))
            }
            guard found == (isZero ? byteCount / Page.byteCount : 0) else {
                throw Child.Failure(description: "the zero test is wrong: \(found)")
            }
            run.limit("memcpy of the same", byteCount: byteCount) {
                other.copy(from: memory.bytes)
            }
        }
    }
}

// MARK: - Digest

private func digestBenchmarks() {
    let byteCount = Settings.sized(1 << 30, quick: 64 << 20)
    for path in Kernels.paths {
        compare(
            "digest.\(path)", "BLAKE3 of each 4 KiB page, path \(path)",
            rounds: Settings.sized(7, quick: 2)
        ) { run in
            Kernels.select(path)
            let subject = DigestSubject(
                memory: try Memory.guest(byteCount: byteCount), file: run.directory + "/long")
            try subject.memory.write(to: subject.file)
            if Child.exists("b3sum") {
                // Checks that the digests are equal before anything is timed.
                let output = try Child.run(["b3sum", "--num-threads", "1", subject.file]).output
                let mine = Kernels.digest(UnsafeRawBufferPointer(subject.memory.bytes))
                guard output.hasPrefix("\(mine) ") else {
                    throw Child.Failure(description: "b3sum says \(output), path \(path) \(mine)")
                }
            }
            return subject
        } round: { subject, run in
            run.subject("4 KiB pages", byteCount: byteCount) { subject.digest() }
            if Child.exists("b3sum") {
                let result = try Child.run(["b3sum", "--num-threads", "1", subject.file])
                run.add(
                    "b3sum --num-threads 1, one long file in the page cache", .limit,
                    seconds: result.seconds, byteCount: byteCount)
            }
            guard path == Kernels.paths.last else { return }
            let result = try Child.run(["openssl", "dgst", "-sha256", subject.file])
            run.add(
                "openssl dgst -sha256, the same file", .peer, seconds: result.seconds,
                byteCount: byteCount)
        }
    }
}

private final class DigestSubject {
    let memory: Memory
    let file: String
    private var digests: [PageDigest]

    init(memory: Memory, file: String) {
        self.memory = memory
        self.file = file
        digests = [PageDigest](repeating: .none, count: memory.bytes.count / Page.byteCount)
    }

    func digest() {
        digests.withUnsafeMutableBufferPointer {
            Kernels.digestPages(UnsafeRawBufferPointer(memory.bytes), into: $0)
        }
    }
}

// MARK: - Encode and decode

/// A guest's pages in memory and in a file.
private final class CodecSubject {
    let memory: Memory
    let file: String
    let level: Int32
    var codec: FrameCodec
    let blocks: EncodedBlocks
    private let room = Memory(byteCount: FrameCodec.frameByteCount)

    init(byteCount: Int, level: Int32, directory: String) throws {
        memory = try Memory.guest(byteCount: byteCount)
        file = directory + "/pages"
        try memory.write(to: file)
        self.level = level
        codec = FrameCodec(level: CompressionLevel(rawValue: level))
        blocks = codec.blocks(UnsafeRawBufferPointer(memory.bytes))
    }

    func decode() throws { try codec.decode(blocks, into: room.bytes) }

    /// The speed of `zstd -b` at this level and block size, in bytes of memory a second.
    func zstd() throws -> (encode: Double, decode: Double, byteCount: Int) {
        let name = level < 0 ? "--fast=\(-level)" : "-\(level)"
        let output = try Child.run(
            ["zstd", "-b\(max(1, level))", name, "-i1", "-B\(FrameCodec.frameByteCount)", file]
        ).output
        // 1#pages : 67108864 -> 38761234 (x1.731), 466.2 MB/s, 1234.5 MB/s
        let line = output.split(whereSeparator: { $0 == "\r" || $0 == "\n" }).last {
            $0.contains("->") && $0.components(separatedBy: "MB/s").count == 3
        }
        let words = line?.split(whereSeparator: { " ,>".contains($0) }).map(String.init) ?? []
        let rates = words.indices.filter { words[$0] == "MB/s" }.compactMap {
            Double(words[$0 - 1])
        }
        guard rates.count == 2, let arrow = words.firstIndex(of: "-"),
            let count = Int(words[arrow + 1])
        else { throw Child.Failure(description: "zstd -b printed: \(output.suffix(300))") }
        return (rates[0] * 1e6, rates[1] * 1e6, count)
    }
}

private func encodeBenchmarks() {
    let byteCount = Settings.sized(128 << 20, quick: 32 << 20)
    for level in [Int32(-1), 1, 3] {
        compare(
            "encode.level\(level)", "encoding page groups of 16 pages, zstd level \(level)",
            rounds: Settings.sized(5, quick: 2)
        ) { run in
            try CodecSubject(byteCount: byteCount, level: level, directory: run.directory)
        } round: { subject, run in
            let stored = run.subject("page groups", byteCount: byteCount) {
                subject.codec.encode(UnsafeRawBufferPointer(subject.memory.bytes))
            }
            let limit = try subject.zstd()
            run.add(
                "zstd -b with \(level < 0 ? "--fast=\(-level)" : "-\(level)") -B64KiB", .limit,
                seconds: Double(byteCount) / limit.encode,
                byteCount: byteCount)
            run.note("pages over stored bytes", Double(byteCount) / Double(stored), "x")
            run.note(
                "pages over bytes of zstd -b", Double(byteCount) / Double(limit.byteCount), "x")
        }
    }
}

/// All cores at once: the encoder alone, and a whole import.
private func coresBenchmarks() {
    let byteCount = Settings.sized(128 << 20, quick: 32 << 20)
    let cores = ProcessInfo.processInfo.activeProcessorCount
    compare(
        "encode.cores",
        "import into a repository on all cores: zero test, digest, encode, index, write, sync",
        rounds: Settings.sized(9, quick: 2)
    ) { run in
        let subjects = try (0..<cores).map { core in
            let place = run.directory + "/\(core)"
            try FileManager.default.createDirectory(
                atPath: place, withIntermediateDirectories: true)
            return try CodecSubject(byteCount: byteCount, level: 1, directory: place)
        }
        return ImportSubject(subjects: subjects, directory: run.directory)
    } round: { subject, run in
        let total = cores * byteCount
        try run.subject("import", byteCount: total) { try subject.takeIn() }
        try subject.removeStore()
        run.time("page groups alone, on each core", .part, byteCount: total) {
            subject.encodeOnAllCores()
        }
        // The speed of each core while all of them run, added up.
        let rates = try subject.zstdOnAllCores()
        run.add(
            "zstd -b with -1 -B64KiB on each core", .limit,
            seconds: Double(total) / rates.reduce(0, +),
            byteCount: total)
    }
}

/// As many parts of a guest's memory as there are cores.
private final class ImportSubject: ImageSource, @unchecked Sendable {
    // Only read after its initialization.
    private let subjects: [CodecSubject]
    private let directory: String
    private var count = 0

    init(subjects: [CodecSubject], directory: String) {
        self.subjects = subjects
        self.directory = directory
    }

    /// Removes the repository of the last `takeIn`; this is not part of the import's time.
    func removeStore() throws { try FileManager.default.removeItem(atPath: path) }

    private var path: String { directory + "/store-\(count)" }

    /// Imports all parts into a new repository.
    func takeIn() throws {
        count += 1
        let repository = try Repository.create(at: FilePath(path))
        _ = try repository.importImage(self, lineage: "import")
        try repository.close()
    }

    var byteCount: Int { subjects.count * partByteCount }

    private var partByteCount: Int { subjects[0].memory.bytes.count }

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        var done = 0
        while done < buffer.count {
            let (part, start) = (offset + done).quotientAndRemainder(dividingBy: partByteCount)
            let source = UnsafeRawBufferPointer(subjects[part].memory.bytes)
            let count = min(buffer.count - done, source.count - start)
            let room = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
            room.copyMemory(
                from: UnsafeRawBufferPointer(rebasing: source[start..<start + count]))
            // The parts hold the same pages: a number in each page makes them different.
            for page in 0..<count / Page.byteCount {
                GuestContent.stamp(
                    room, page, UInt64(part << 32 + start + page * Page.byteCount))
            }
            done += count
        }
    }

    func checkUnchanged() {}

    func encodeOnAllCores() {
        DispatchQueue.concurrentPerform(iterations: subjects.count) { core in
            let subject = subjects[core]
            _ = subject.codec.encode(UnsafeRawBufferPointer(subject.memory.bytes))
        }
    }

    func zstdOnAllCores() throws -> [Double] {
        let rates = Mutex<[Double]>([])
        DispatchQueue.concurrentPerform(iterations: subjects.count) { core in
            if let rate = try? subjects[core].zstd().encode { rates.withLock { $0.append(rate) } }
        }
        let all = rates.withLock { $0 }
        guard all.count == subjects.count else {
            throw Child.Failure(description: "zstd -b failed on a core")
        }
        return all
    }
}

private func decodeBenchmarks() {
    let byteCount = Settings.sized(128 << 20, quick: 32 << 20)
    compare(
        "decode.level1", "decoding page groups of 16 pages", rounds: Settings.sized(7, quick: 2)
    ) { run in
        try CodecSubject(byteCount: byteCount, level: 1, directory: run.directory)
    } round: { subject, run in
        try run.subject("page groups", byteCount: byteCount) { try subject.decode() }
        let limit = try subject.zstd()
        run.add(
            "zstd -b with -1 -B64KiB, decoding", .limit, seconds: Double(byteCount) / limit.decode,
            byteCount: byteCount)
    }
}

// MARK: - Index

/// A repository with many different pages, and their digests.
private final class IndexSubject {
    let repository: Repository
    let batch: [PageDigest]
    let table: [PageDigest: UInt64]

    init(pageCount: Int, batchCount: Int, directory: String) throws {
        repository = try Repository.create(at: FilePath(directory + "/store"))
        // Each page holds its number and is otherwise zero: only the index matters here.
        var digests = [PageDigest](repeating: .none, count: pageCount)
        var next = 0
        _ = try repository.importImage(lineage: "index") { buffer in
            let count = min(buffer.count / Page.byteCount, pageCount - next)
            guard count > 0 else { return 0 }
            let pages = UnsafeMutableRawBufferPointer(
                rebasing: buffer[..<(count * Page.byteCount)])
            pages.initializeMemory(as: UInt8.self, repeating: 0)
            for page in 0..<count {
                pages.storeBytes(
                    of: UInt64(next + page + 1), toByteOffset: page * Page.byteCount,
                    as: UInt64.self)
            }
            digests[next..<next + count].withUnsafeMutableBufferPointer {
                Kernels.digestPages(UnsafeRawBufferPointer(pages), into: $0)
            }
            next += count
            return pages.count
        }
        table = Dictionary(
            uniqueKeysWithValues: digests.enumerated().map { ($0.element, UInt64($0.offset)) })
        batch = (0..<batchCount).map { digests[$0 * 7919 % pageCount] }
    }
}

private func indexBenchmarks() {
    let pageCount = Settings.sized(1_000_000, quick: 50_000)
    let batchCount = 10_000
    compare(
        "index.lookups", "10,000 look-ups of digests among \(pageCount) stored pages",
        rounds: Settings.sized(15, quick: 3)
    ) { run in
        try IndexSubject(
            pageCount: pageCount, batchCount: batchCount, directory: run.directory)
    } round: { subject, run in
        let found = try run.subject("the repository's index", byteCount: nil) {
            try IndexLookups.foundCount(subject.batch, in: subject.repository)
        }
        let known = run.limit("a Swift Dictionary in memory") {
            subject.batch.reduce(0) { $0 + (subject.table[$1] == nil ? 0 : 1) }
        }
        guard found == batchCount, known == batchCount else {
            throw Child.Failure(description: "found \(found) and \(known) of \(batchCount)")
        }
    }
}
