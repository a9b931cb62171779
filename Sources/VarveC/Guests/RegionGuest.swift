import CVarve
import GuestModel
import LinuxGuest
import Synchronization

/// A guest whose program pauses it and passes its dirty pages with each call.
///
/// The log that the engine sees has what the program passed and no capture has taken yet. So pages
/// are kept when a call fails before it took them.
final class RegionGuest: WritableGuest {
    private struct State {
        var log: DirtyLog?
        /// Pages that the program named and that were not taken.
        var dirty: DirtyBitmap
        /// True if the program could not name them.
        var isUnknown = false
        /// What the next checkpoint gets.
        var saved: [UInt8] = []
        /// What a revert or restore brought.
        var restored: [UInt8] = []
    }

    private let set: RegionSet
    private let state: Mutex<State>
    let startsZeroed: Bool

    init(_ set: RegionSet, startsZeroed: Bool = false) {
        self.set = set
        self.startsZeroed = startsZeroed
        state = Mutex(State(dirty: DirtyBitmap(frameEnd: set.layout.frameEnd)))
    }

    // MARK: - The program's

    /// Adds the pages that the program names; throws before it adds any if an argument is wrong.
    ///
    /// - Parameter dirty: NULL: any page may be one.
    func add(_ dirty: UnsafePointer<varve_dirty>?) throws(Failure) {
        guard let dirty = try varve_dirty.read(dirty) else {
            state.withLock { $0.isUnknown = true }
            return
        }
        let bitmaps = try bitmaps(of: dirty)
        let frames = try frames(of: dirty)
        state.withLock { state in
            for (bitmap, region) in zip(bitmaps, set.regions) {
                RegionGuest.add(bitmap.words, of: region, to: &state.dirty)
            }
            for frame in frames { state.dirty.insert(PageFrameNumber(frame)) }
        }
    }

    /// The bitmaps, one for each region or none; throws if they are not that.
    private func bitmaps(
        of dirty: varve_dirty
    ) throws(Failure) -> UnsafeBufferPointer<varve_bitmap> {
        let count = dirty.bitmap_count
        guard count == 0 || count == set.regions.count else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "there are \(counted(UInt(bitPattern: count), "bitmap")), but "
                    + "\(counted(set.regions.count, "region")): there must be one for each")
        }
        guard count == 0 || dirty.bitmaps != nil else {
            throw Failure(VARVE_INVALID_ARGUMENT, "the array of bitmaps is NULL")
        }
        let bitmaps = UnsafeBufferPointer(start: dirty.bitmaps, count: count)
        for (bitmap, region) in zip(bitmaps, set.regions) {
            let wordCount = bitmap.words == nil ? 0 : UInt(bitPattern: bitmap.word_count)
            guard wordCount >= UInt(region.wordCount) else {
                throw Failure(
                    VARVE_INVALID_ARGUMENT,
                    "the bitmap of the region of frames \(region.pages) has "
                        + "\(counted(wordCount, "word")), but needs \(region.wordCount)")
            }
        }
        return bitmaps
    }

    /// The listed frames; throws if one is in no region.
    private func frames(of dirty: varve_dirty) throws(Failure) -> UnsafeBufferPointer<UInt64> {
        let count = dirty.frame_count
        guard count >= 0, count == 0 || dirty.frames != nil else {
            throw Failure(
                VARVE_INVALID_ARGUMENT, "the array of frames is NULL, or its count no count")
        }
        let frames = UnsafeBufferPointer(start: dirty.frames, count: count)
        for frame in frames where !set.layout.contains(PageFrameNumber(frame)) {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "frame 0x\(String(frame, radix: 16)) is in none of the regions")
        }
        return frames
    }

    /// Adds a bitmap whose first bit is a region's first page.
    private static func add(
        _ words: UnsafePointer<UInt64>, of region: Region, to dirty: inout DirtyBitmap
    ) {
        let first = Int(region.pages.first.rawValue / 64)
        let shift = region.pages.first.rawValue % 64
        for index in 0..<region.wordCount {
            var word = UInt64(littleEndian: words[index])
            guard word != 0 else { continue }
            let rest = region.pages.count - index * 64
            if rest < 64 { word &= 1 << UInt64(rest) - 1 }
            dirty.insert(wordIndex: first + index, mask: word << shift)
            let carry = shift == 0 ? 0 : word >> (64 - shift)
            if carry != 0 { dirty.insert(wordIndex: first + index + 1, mask: carry) }
        }
    }

    /// Sets the state that the next checkpoint gets.
    func save(_ bytes: [UInt8]) {
        state.withLock { $0.saved = bytes }
    }

    /// The state that the last revert or restore brought.
    var restoredState: [UInt8] { state.withLock { $0.restored } }

    // MARK: - Guest

    func layout() -> GuestLayout { set.layout }

    func claim() throws(GuestError) -> GuestClaim {
        try GuestClaim(of: self, memory: set.regions.map { UnsafeRawBufferPointer($0.bytes) })
    }

    var dirtyTracking: (any DirtyTracking)? { self }

    /// Does nothing: the program has paused it.
    func pause() {}

    /// Does nothing: the program resumes it.
    func resume() {}

    func captureState() -> GuestState { MachineState.make(state.withLock { $0.saved }) }

    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        try destination.withUnsafeMutableBytes { (bytes) throws(GuestError) in
            var copy = PieceCopy(to: bytes)
            for index in runs.indices { try set.forEachPiece(of: runs[index]) { copy.add($0) } }
            copy.flush()
        }
    }

    // MARK: - WritableGuest

    func checkState(_ state: GuestState) throws(GuestError) {
        _ = try MachineState.bytes(of: state)
    }

    func adoptLayout(_ layout: GuestLayout) throws(GuestError) {
        guard layout == set.layout else {
            throw GuestError(
                code: .sizeMismatch,
                message: "the checkpoint has \(counted(layout.pageCount, "page")) in "
                    + "\(counted(layout.runs.count, "run")), but the regions have "
                    + "\(set.layout.pageCount) in \(set.layout.runs.count); give regions of the "
                    + "same frames")
        }
    }

    func writePages(_ runs: Span<PageRange>, from source: RawSpan) throws(GuestError) {
        try source.withUnsafeBytes { (bytes) throws(GuestError) in
            var offset = 0
            for index in runs.indices {
                try set.forEachPiece(of: runs[index]) { piece in
                    let end = offset + piece.count
                    piece.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[offset..<end]))
                    offset = end
                }
            }
        }
    }

    func mappedMemory(of range: PageRange) -> UnsafeMutableRawBufferPointer? {
        set.memory(of: range)
    }

    func restoreState(_ newState: GuestState) throws(GuestError) {
        let bytes = try MachineState.bytes(of: newState)
        state.withLock { $0.restored = bytes }
    }
}

extension RegionGuest: DirtyTracking {
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
            defer { state.isUnknown = false }
            return state.isUnknown ? .unknown : .complete
        }
    }

    func peekDirtyCount(_ log: DirtyLog) -> Int {
        state.withLock { $0.isUnknown ? set.layout.pageCount : $0.dirty.count }
    }

    func stop(_ log: DirtyLog) {
        state.withLock { state in
            if state.log == log { state.log = nil }
        }
    }
}
