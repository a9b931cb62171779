import CVarve
import Glibc
import Synchronization
import VarveC
import VarveCore

// What the interface for C costs: captures of the same dirty pages of 1 GiB by a guest in Swift,
// by regions and a bitmap through varve.h, and by callbacks through varve.h, in turn.
//
//   varve-boundary [PAGES] [ROUNDS]
//
// The machine's other work disturbs all three alike; the median of each is printed, and its ratio
// to Swift's. `begin` is the time in which the guest is paused, `processor` all time that the
// process used for a checkpoint until it was durable, in a repository in memory.

/// Memory in this process whose program knows what it wrote: the guest of an embedder in Swift.
final class BitmapGuest: Guest {
    struct State {
        var log: DirtyLog?
        var dirty = DirtyBitmap()
    }

    // Written by one thread, while no capture runs.
    nonisolated(unsafe) let memory: UnsafeMutableRawBufferPointer
    let state = Mutex(State())

    init(_ memory: UnsafeMutableRawBufferPointer) {
        self.memory = memory
    }

    func layout() -> GuestLayout { GuestLayout(pageCount: memory.count / Page.byteCount) }
    var dirtyTracking: (any DirtyTracking)? { self }
    func pause() {}
    func resume() {}
    func captureState() -> GuestState { .empty }

    func copyPages(_ runs: Span<PageRange>, into destination: inout MutableRawSpan) {
        destination.withUnsafeMutableBytes { bytes in
            var offset = 0
            for index in runs.indices {
                let start = Int(runs[index].first.rawValue) * Page.byteCount
                let source = memory[start..<start + runs[index].byteCount]
                UnsafeMutableRawBufferPointer(rebasing: bytes[offset...])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: source))
                offset += runs[index].byteCount
            }
        }
    }
}

extension BitmapGuest: DirtyTracking {
    func start() -> DirtyLog {
        state.withLock { state in
            let log = DirtyLog()
            state.log = log
            return log
        }
    }

    func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) -> DirtyKnowledge {
        state.withLock { state in
            guard state.log == log else { return .unknown }
            bitmap.formUnion(state.dirty)
            state.dirty.removeAll()
            return .complete
        }
    }

    func peekDirtyCount(_ log: DirtyLog) -> Int { state.withLock { $0.dirty.count } }
    func stop(_ log: DirtyLog) { state.withLock { $0.log = nil } }
}

/// One of the three: begins a checkpoint of some dirty pages, and waits for it.
struct Contender {
    let name: String
    let memory: UnsafeMutableRawBufferPointer
    let capture: (_ words: [UInt64], _ begun: () -> Void) -> Void
    /// Closes the repository, which removes it.
    let close: () -> Void
    var begins: [Double] = []
    var processor: [Double] = []
}

/// Ends the program with the sentence of a call that failed.
func must(_ code: Int32) {
    guard code != 0 else { return }
    fatalError(String(cString: varve_error_message()))
}

enum Contenders {
    static func mapped(_ byteCount: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: Page.byteCount)
    }

    /// Through the protocol, in Swift.
    static func swift(byteCount: Int) throws -> Contender {
        let memory = mapped(byteCount)
        let guest = BitmapGuest(memory)
        let repository = try Repository.createVolatile()
        // As a guest that is paused anyway: everything is copied in the pause.
        var options = CaptureOptions()
        options.pauseBudget = .seconds(3600)
        options.poolByteCount = Boundary.poolByteCount
        let session = try CaptureSession(
            of: guest, in: repository, lineage: "swift", options: options)
        return Contender(
            name: "Swift", memory: memory,
            capture: { words, begun in
                guest.state.withLock { $0.dirty.formUnion(words: words.span) }
                do {
                    let pending = try session.begin()
                    begun()
                    _ = try pending.wait()
                } catch {
                    fatalError("\(error)")
                }
            },
            close: {
                session.close()
                try? repository.close()
            })
    }

    private static func repository() -> OpaquePointer? {
        var repository: OpaquePointer?
        must(varve_repository_create_volatile(nil, &repository))
        return repository
    }

    private static var options: varve_session_options {
        var options = varve_session_options()
        options.size = MemoryLayout<varve_session_options>.stride
        options.pool_byte_count = UInt64(Boundary.poolByteCount)
        options.pause_budget_nanoseconds = 3_600_000_000_000
        return options
    }

    /// Begins by `varve_session_begin`, and waits.
    private static func capture(
        _ session: OpaquePointer?, _ dirty: UnsafePointer<varve_dirty>?, _ begun: () -> Void
    ) {
        var input = varve_capture_input()
        input.size = MemoryLayout<varve_capture_input>.stride
        input.dirty = dirty
        var capture: OpaquePointer?
        must(varve_session_begin(session, &input, nil, &capture))
        begun()
        must(varve_capture_wait(capture, -1, nil))
        must(varve_capture_free(capture))
    }

    /// Through regions and a bitmap.
    static func regions(byteCount: Int) -> Contender {
        let memory = mapped(byteCount)
        var region = varve_region()
        region.size = MemoryLayout<varve_region>.stride
        region.address = memory.baseAddress
        region.byte_count = UInt64(byteCount)
        var session: OpaquePointer?
        var options = options
        let repository = repository()
        must(varve_session_open_regions(repository, "regions", &region, 1, &options, &session))
        return Contender(
            name: "regions", memory: memory,
            capture: { [session] words, begun in
                words.withUnsafeBufferPointer { words in
                    var bitmap = varve_bitmap(words: words.baseAddress, word_count: words.count)
                    withUnsafePointer(to: &bitmap) { bitmap in
                        var dirty = varve_dirty()
                        dirty.size = MemoryLayout<varve_dirty>.stride
                        dirty.bitmaps = bitmap
                        dirty.bitmap_count = 1
                        capture(session, &dirty, begun)
                    }
                }
            },
            close: { [session] in close(session, repository) })
    }

    private static func close(_ session: OpaquePointer?, _ repository: OpaquePointer?) {
        must(varve_session_close(session))
        must(varve_repository_close(repository))
    }

    /// What the callbacks are passed.
    private final class Context {
        let memory: UnsafeMutableRawBufferPointer
        var words: [UInt64] = []
        let layout: UnsafeMutablePointer<varve_range>

        init(_ memory: UnsafeMutableRawBufferPointer) {
            self.memory = memory
            layout = .allocate(capacity: 1)
            layout.initialize(
                to: varve_range(first: 0, count: UInt64(memory.count / Page.byteCount)))
        }

        static func of(_ pointer: UnsafeMutableRawPointer?) -> Context {
            guard let pointer else { fatalError("no context") }
            return Unmanaged<Context>.fromOpaque(pointer).takeUnretainedValue()
        }
    }

    private static func table() -> varve_callbacks {
        var table = varve_callbacks()
        table.size = MemoryLayout<varve_callbacks>.stride
        table.layout = { context, ranges, count in
            ranges?.pointee = UnsafePointer(Context.of(context).layout)
            count?.pointee = 1
            return 0
        }
        table.pause = { _ in 0 }
        table.resume = { _ in 0 }
        table.copy_pages = { context, ranges, count, pages in
            guard let ranges, var target = pages else { return 1 }
            let memory = Context.of(context).memory
            for range in UnsafeBufferPointer(start: ranges, count: count) {
                let start = Int(range.first) * Page.byteCount
                let length = Int(range.count) * Page.byteCount
                memcpy(target, memory.baseAddress.unsafelyUnwrapped + start, length)
                target += length
            }
            return 0
        }
        table.take_dirty = { context, words, count, _ in
            let context = Context.of(context)
            guard let words, !context.words.isEmpty else { return 0 }
            for index in 0..<min(count, context.words.count) {
                words[index] |= context.words[index]
            }
            context.words = []
            return 0
        }
        table.count_dirty = { context in
            Int64(Context.of(context).words.reduce(0) { $0 + $1.nonzeroBitCount })
        }
        return table
    }

    /// Through callbacks.
    static func callbacks(byteCount: Int) -> Contender {
        let memory = mapped(byteCount)
        let context = Context(memory)
        var table = table()
        var session: OpaquePointer?
        var options = options
        let repository = repository()
        must(
            varve_session_open_callbacks(
                repository, "callbacks", &table, Unmanaged.passRetained(context).toOpaque(),
                &options, &session))
        return Contender(
            name: "callbacks", memory: memory,
            capture: { [session] words, begun in
                context.words = words
                capture(session, nil, begun)
            },
            close: { [session] in close(session, repository) })
    }
}

@main
enum Boundary {
    static let poolByteCount = 1 << 30
    private static let byteCount = 1 << 30

    static func main() throws {
        let arguments = CommandLine.arguments.dropFirst().compactMap { Int($0) }
        let pageCount = arguments.first ?? 1000
        let roundCount = arguments.dropFirst().first ?? 51
        var contenders = [
            try Contenders.swift(byteCount: byteCount), Contenders.regions(byteCount: byteCount),
            Contenders.callbacks(byteCount: byteCount),
        ]
        var random = SystemRandomNumberGenerator()
        for round in 0...roundCount {
            var words = [UInt64](repeating: 0, count: byteCount / Page.byteCount / 64)
            var count = 0
            while count < pageCount {
                let page = Int.random(in: 0..<byteCount / Page.byteCount, using: &random)
                guard words[page / 64] & 1 << UInt64(page % 64) == 0 else { continue }
                words[page / 64] |= 1 << UInt64(page % 64)
                count += 1
            }
            // Each round begins with another one.
            for position in contenders.indices {
                let index = (position + round) % contenders.count
                measure(&contenders[index], words, round)
            }
        }
        report(contenders, pageCount)
        for contender in contenders { contender.close() }
    }

    private static func measure(_ contender: inout Contender, _ words: [UInt64], _ round: Int) {
        for (index, word) in words.enumerated() where word != 0 {
            var rest = word
            while rest != 0 {
                let page = index * 64 + rest.trailingZeroBitCount
                rest &= rest - 1
                contender.memory.storeBytes(
                    of: round + 1, toByteOffset: page * Page.byteCount, as: Int.self)
            }
        }
        let processor = processorTime()
        let start = ContinuousClock.now
        var begun = start
        contender.capture(words) { begun = .now }
        // The first copies everything.
        guard round > 0 else { return }
        contender.begins.append((begun - start) / .microseconds(1))
        contender.processor.append(processorTime() - processor)
    }

    /// Microseconds of processor time that this process has used.
    private static func processorTime() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) * 1e6 + Double(time.tv_nsec) / 1e3
    }

    private static func median(_ values: [Double]) -> Double {
        values.sorted()[values.count / 2]
    }

    private static func report(_ contenders: [Contender], _ pageCount: Int) {
        print("\(pageCount) dirty pages of 1 GiB, medians of \(contenders[0].begins.count)")
        let base = contenders[0]
        for contender in contenders {
            let begin = median(contender.begins)
            let processor = median(contender.processor)
            print(
                "\(contender.name): begin \(Int(begin)) us (\(ratio(begin, median(base.begins)))), "
                    + "processor \(Int(processor)) us "
                    + "(\(ratio(processor, median(base.processor))))")
        }
    }

    private static func ratio(_ one: Double, _ other: Double) -> String {
        "\((one / other * 1000).rounded() / 1000)"
    }
}
