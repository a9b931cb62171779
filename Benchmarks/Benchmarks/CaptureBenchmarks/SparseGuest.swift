import Synchronization
import Varve

/// A guest of any size in which only written pages take memory; the others are zero.
final class SparseGuest: Guest, DirtyTracking {
    private struct State {
        var stamps: [UInt64: UInt64] = [:]
        var dirty = DirtyBitmap()
        /// The active log; nil if there is none.
        var log: DirtyLog?
        var number: UInt64 = 0
        var random = SystemRandomNumberGenerator()
    }

    private let pageCount: Int
    private let state = Mutex(State())

    init(pageCount: Int) {
        self.pageCount = pageCount
    }

    /// Writes to random pages.
    func dirty(_ count: Int) {
        state.withLock { state in
            for _ in 0..<count {
                let frame = UInt64.random(in: 0..<UInt64(pageCount), using: &state.random)
                state.number += 1
                state.stamps[frame] = state.number
                state.dirty.insert(PageFrameNumber(frame))
            }
        }
    }

    func layout() -> GuestLayout { GuestLayout(pageCount: pageCount) }

    var dirtyTracking: (any DirtyTracking)? { self }

    func pause() {}

    func resume() {}

    func copyPages(
        _ runs: Span<PageRange>, into destination: inout MutableRawSpan
    ) throws(GuestError) {
        destination.withUnsafeMutableBytes { bytes in
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
            var offset = 0
            state.withLock { state in
                for index in runs.indices {
                    for frame in runs[index].frames {
                        if let stamp = state.stamps[frame] {
                            bytes.storeBytes(of: stamp, toByteOffset: offset, as: UInt64.self)
                        }
                        offset += Page.byteCount
                    }
                }
            }
        }
    }

    func captureState() -> GuestState { .empty }

    func start() -> DirtyLog {
        let log = DirtyLog()
        state.withLock { $0.log = log }
        return log
    }

    func isRunning(_ log: DirtyLog) -> Bool { state.withLock { $0.log == log } }

    func takeDirty(
        _ log: DirtyLog, into bitmap: inout DirtyBitmap, isFinal: Bool
    ) -> DirtyKnowledge {
        state.withLock { state -> DirtyBitmap? in
            guard state.log == log else { return nil }
            defer { state.dirty.removeAll() }
            return state.dirty
        }.map { taken in
            bitmap.formUnion(taken)
            return .complete
        } ?? .unknown
    }

    func peekDirtyCount(_ log: DirtyLog) -> Int { state.withLock { $0.dirty.count } }

    func stop(_ log: DirtyLog) {
        state.withLock { state in
            if state.log == log { state.log = nil }
        }
    }
}
