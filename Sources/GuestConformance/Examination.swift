import Glibc
import GuestModel

/// One check's guest, and what all checks do with it.
struct Examination {
    /// The most frames that are compared.
    private static let sampleCountMax = 4096

    let subject: ConformanceSubject
    let guest: any Guest
    let layout: GuestLayout
    /// Frames that may be written.
    let frames: [PageFrameNumber]
    /// Frames that are compared; those that may be written come first.
    let sample: [PageFrameNumber]
    var random: Draws

    /// Random numbers that a seed repeats.
    ///
    /// SplitMix64: G. Steele et al., OOPSLA 2014.
    struct Draws: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state &+= 0x9e37_79b9_7f4a_7c15
            var z = state
            z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
            z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
            return z ^ (z >> 31)
        }
    }

    init(_ subject: ConformanceSubject, seed: UInt64) throws {
        self.subject = subject
        guest = subject.guest
        layout = try guest.layout()
        random = Draws(state: seed)
        guard layout.pageCount > 0 else { throw Finding("the guest has no page") }
        let all = layout
        if let frames = subject.frames {
            guard !frames.isEmpty, frames.allSatisfy({ all.contains($0) }) else {
                throw Finding("the subject's frames are empty, or not all in the layout")
            }
            self.frames = frames.sorted()
        } else {
            frames = Examination.draw(Examination.sampleCountMax, of: layout, &random)
        }
        sample = Set(frames.prefix(Examination.sampleCountMax))
            .union(Examination.draw(Examination.sampleCountMax - frames.count, of: layout, &random))
            .sorted()
    }

    /// Draws some frames of a layout, or all if there are no more.
    private static func draw(
        _ count: Int, of layout: GuestLayout, _ random: inout Draws
    ) -> [PageFrameNumber] {
        guard count > 0 else { return [] }
        var numbers: Set<Int> = []
        if layout.pageCount <= count {
            numbers = Set(0..<layout.pageCount)
        } else {
            while numbers.count < count {
                numbers.insert(Int.random(in: 0..<layout.pageCount, using: &random))
            }
        }
        var frames: [PageFrameNumber] = []
        var passed = 0
        var left = numbers.sorted()[...]
        for run in layout.runs {
            while let next = left.first, next < passed + run.count {
                frames.append(PageFrameNumber(run.first.rawValue + UInt64(next - passed)))
                left.removeFirst()
            }
            passed += run.count
        }
        return frames
    }

    // MARK: - Memory

    /// Makes a page that exists nowhere yet, with near certainty.
    mutating func page() -> [UInt8] {
        var bytes = [UInt8](repeating: UInt8.random(in: 0...255, using: &random), count: 4096)
        bytes.withUnsafeMutableBytes { bytes in
            // At both ends, and at some offsets between them.
            for place in [0, 511] + (0..<14).map({ _ in Int.random(in: 1..<511, using: &random) }) {
                bytes.storeBytes(of: random.next(), toByteOffset: 8 * place, as: UInt64.self)
            }
        }
        return bytes
    }

    /// True if bytes are equal.
    static func same(_ left: [UInt8], _ right: [UInt8]) -> Bool {
        guard left.count == right.count else { return false }
        return left.withUnsafeBytes { left in
            right.withUnsafeBytes { right in
                guard let one = left.baseAddress, let other = right.baseAddress else { return true }
                return memcmp(one, other, left.count) == 0
            }
        }
    }

    /// True if pages are equal.
    static func same(_ left: [[UInt8]], _ right: [[UInt8]]) -> Bool {
        left.count == right.count && left.indices.allSatisfy { same(left[$0], right[$0]) }
    }

    /// Makes the guest write to some pages.
    mutating func write(atMost count: Int = 12) throws -> Set<PageFrameNumber> {
        var written: Set<PageFrameNumber> = []
        for _ in 0..<Int.random(in: 1...count, using: &random) {
            let frame = frames[Int.random(in: 0..<frames.count, using: &random)]
            try subject.write(frame, page())
            written.insert(frame)
        }
        return written
    }

    /// Copies runs in one call, into memory that was filled with a byte.
    func copy(_ runs: [PageRange], over filler: UInt8 = 0xa5) throws -> [UInt8] {
        let count = runs.reduce(0) { $0 + $1.byteCount }
        // One page before and one after, where stray writes are noticed.
        let room = UnsafeMutableRawBufferPointer.allocate(
            byteCount: count + 2 * Page.byteCount, alignment: Page.byteCount)
        defer { room.deallocate() }
        room.initializeMemory(as: UInt8.self, repeating: filler)
        let place = UnsafeMutableRawBufferPointer(
            rebasing: room[Page.byteCount..<Page.byteCount + count])
        var destination = place.mutableBytes
        try guest.copyPages(runs.span, into: &destination)
        let untouched = [UInt8](repeating: filler, count: Page.byteCount)
        let edges = [room[..<Page.byteCount], room[(Page.byteCount + count)...]]
        guard edges.allSatisfy({ Examination.same(untouched, [UInt8]($0)) }) else {
            throw Finding("copyPages wrote outside of its destination")
        }
        return [UInt8](place)
    }

    /// Copies one page.
    func copy(_ frame: PageFrameNumber) throws -> [UInt8] {
        try copy([PageRange(first: frame, count: 1)])
    }

    /// Copies the sample's pages, frame by frame.
    func copySample() throws -> [[UInt8]] {
        try sample.map { try copy($0) }
    }

    /// Draws some runs of the layout, ascending, with gaps between them where there is room.
    mutating func scatteredRuns(_ count: Int = 12) -> [PageRange] {
        var runs: [PageRange] = []
        var position = 0
        while position < sample.count, runs.count < count {
            let first = sample[position]
            var length = 1
            let wanted = Int.random(in: 1...3, using: &random)
            while length < wanted, position + length < sample.count,
                sample[position + length].rawValue == first.rawValue + UInt64(length)
            {
                length += 1
            }
            runs.append(PageRange(first: first, count: length))
            position += length + Int.random(in: 1...4, using: &random)
        }
        return runs
    }

    /// Calls `body` with the guest paused; it is resumed in any case.
    func paused<T>(_ body: () throws -> T) throws -> T {
        let pause = try PausedGuest(pausing: guest)
        let result = try body()
        try pause.resume()
        return result
    }

    // MARK: - The log

    func tracking() throws -> any DirtyTracking {
        guard let tracking = guest.dirtyTracking else { throw Skip("the guest has no dirty log") }
        return tracking
    }

    func writable() throws -> any WritableGuest {
        guard let guest = guest as? any WritableGuest else {
            throw Skip("the guest cannot be written in place")
        }
        return guest
    }

    /// Takes a running log, which must know everything.
    func take(
        _ tracking: any DirtyTracking, _ log: DirtyLog, isFinal: Bool = false
    ) throws -> DirtyBitmap {
        var set = DirtyBitmap()
        guard try tracking.takeDirty(log, into: &set, isFinal: isFinal) == .complete else {
            throw Finding("takeDirty returns unknown for a log that runs and was not ended")
        }
        return set
    }

    /// The name of the call in which a log that must have ended returns `complete`; nil if none
    /// does.
    func claimsToKnow(_ tracking: any DirtyTracking, _ log: DirtyLog) -> String? {
        var set = DirtyBitmap()
        // To throw is as good as to return `unknown`.
        let taken = try? tracking.takeDirty(log, into: &set, isFinal: false)
        let read = try? tracking.readDirty(log, into: &set, isFinal: false)
        return taken == .complete ? "takeDirty" : read == .complete ? "readDirty" : nil
    }

    /// Throws unless the frames are in the set.
    func expect(_ set: DirtyBitmap, has frames: Set<PageFrameNumber>, _ what: String) throws {
        let missing = frames.filter { !set.contains($0) }.sorted()
        guard let first = missing.first else { return }
        throw Finding("\(what): \(missing.count) of \(frames.count) are missing, first \(first)")
    }
}
