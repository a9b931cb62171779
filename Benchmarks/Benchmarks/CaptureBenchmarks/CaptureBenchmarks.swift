import Benchmark
import Foundation
import SystemPackage
import Varve

// Each figure beside its limit in the same run: copying the same pages with memcpy.

/// A guest in this process with a repository to take it to.
private final class Subject {
    let directory = FileManager.default.temporaryDirectory
        .appendingPathComponent("varve-benchmark-\(UUID().uuidString)")
    let memory = ProcessMemory()
    let region: MemoryRegion
    let session: CaptureSession
    let first: Checkpoint
    private var next: UInt64 = 1

    init(pageCount: Int) throws {
        region = try memory.allocate(byteCount: pageCount * Page.byteCount)
        let repository = try Repository.create(at: FilePath(directory.path))
        session = try CaptureSession(of: memory, in: repository, lineage: "benchmark")
        for page in 0..<pageCount { Subject.write(page, of: region, &next) }
        first = try session.capture().checkpoint
    }

    deinit {
        session.close()
        try? FileManager.default.removeItem(at: directory)
    }

    /// Makes a page dirty, half of it with new content.
    private static func write(_ page: Int, of region: MemoryRegion, _ next: inout UInt64) {
        for offset in stride(from: 0, to: Page.byteCount / 2, by: 8) {
            next = next &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            region.bytes.storeBytes(
                of: next, toByteOffset: page * Page.byteCount + offset, as: UInt64.self)
        }
    }

    /// Makes so many pages dirty, far from each other.
    func write(pages count: Int) {
        let pageCount = region.pages.count
        for index in 0..<count {
            Subject.write(index * 7919 % pageCount, of: region, &next)
        }
    }
}

let benchmarks: @Sendable () -> Void = {
    let pageCount = 65_536
    let dirtyCount = 1000
    let configuration = Benchmark.Configuration(
        metrics: [.wallClock, .cpuTotal, .peakMemoryResident], timeUnits: .microseconds,
        warmupIterations: 2, maxDuration: .seconds(5), maxIterations: 200)

    Benchmark("memcpy of 1,000 scattered pages", configuration: configuration) {
        benchmark, subject in
        let target = UnsafeMutableRawPointer.allocate(
            byteCount: dirtyCount * Page.byteCount, alignment: Page.byteCount)
        defer { target.deallocate() }
        subject.write(pages: dirtyCount)
        benchmark.startMeasurement()
        for index in 0..<dirtyCount {
            let page = index * 7919 % pageCount
            guard let base = subject.region.bytes.baseAddress else { continue }
            (target + index * Page.byteCount).copyMemory(
                from: base + page * Page.byteCount, byteCount: Page.byteCount)
        }
        benchmark.stopMeasurement()
    } setup: {
        try Subject(pageCount: pageCount)
    }

    Benchmark(
        "capture of 1,000 dirty pages of 256 MiB until the guest runs", configuration: configuration
    ) { benchmark, subject in
        subject.write(pages: dirtyCount)
        benchmark.startMeasurement()
        let pending = try subject.session.begin()
        benchmark.stopMeasurement()
        _ = try pending.wait()
    } setup: {
        try Subject(pageCount: pageCount)
    }

    Benchmark(
        "capture of 1,000 dirty pages of 256 MiB until it is durable", configuration: configuration
    ) { benchmark, subject in
        subject.write(pages: dirtyCount)
        benchmark.startMeasurement()
        _ = try subject.session.capture()
        benchmark.stopMeasurement()
    } setup: {
        try Subject(pageCount: pageCount)
    }

    Benchmark(
        "revert of 1,000 differing pages of 256 MiB", configuration: configuration
    ) { benchmark, subject in
        subject.write(pages: dirtyCount)
        benchmark.startMeasurement()
        _ = try subject.session.revert(to: subject.first)
        benchmark.stopMeasurement()
    } setup: {
        try Subject(pageCount: pageCount)
    }
}
