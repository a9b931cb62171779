import CheckpointFormat
package import CheckpointIndex
package import GuestModel
import Synchronization

/// A checkpoint in preparation: the parent's page map, updated as pages are added.
///
/// Workers call it from several threads, each for different frames. Two versions of one frame must
/// be added one after the other; the last one counts.
package final class CheckpointDraft: Sendable {
    struct State: Sendable {
        var map: PageMap
        var changed = DirtyBitmap()
        var stored = StoredPages()
    }

    private let state: Mutex<State>

    /// Starts from the parent's map, which then belongs to the draft.
    package init(map: PageMap) {
        state = Mutex(State(map: map))
    }

    /// Makes the frames of a layout exist.
    ///
    /// New ones are zero until they are set.
    package func adopt(_ layout: GuestLayout) {
        state.withLock { state in
            let before = state.map.layout
            guard before != layout else { return }
            for run in before.runs { state.forgetFrames(of: run, outside: layout) }
            state.changed.formUnion(state.map.adopt(layout))
        }
    }

    /// Sets the current contents of frames.
    ///
    /// - Parameters:
    ///   - frames: the frame numbers.
    ///   - contents: the content of each.
    ///   - changed: receives the index of each frame whose content changed.
    package func update(
        _ frames: Span<UInt64>, _ contents: Span<PageContent>, changed: inout [Int]
    ) {
        state.withLock { state in
            state.map.set(frames, contents) { position, old in
                let frame = PageFrameNumber(frames[position])
                if case .present(let digest) = old {
                    state.stored.forget(frame, holding: digest)
                }
                state.changed.insert(frame)
                changed.append(position)
            }
        }
    }

    /// Sets frames to zero; costs one step per 64 frames, plus what is replaced.
    package func updateZeros(_ range: PageRange) {
        state.withLock { state in
            state.map.setZero(range) { frame, digest in
                state.stored.forget(frame, holding: digest)
            } changed: { word, mask in
                state.changed.insert(wordIndex: word, mask: mask)
            }
        }
    }

    /// The indexes of frames whose content differs from the draft.
    package func differing(
        _ frames: Span<UInt64>, from contents: Span<PageContent>
    ) -> [Int] {
        state.withLock { state in
            var positions: [Int] = []
            for position in frames.indices
            where state.map[PageFrameNumber(frames[position])] != contents[position] {
                positions.append(position)
            }
            return positions
        }
    }

    /// Records that the transaction stored the contents of consecutive frames, with consecutive
    /// ordinals from one on.
    package func recordStored(_ runs: [(range: PageRange, ordinal: UInt32)]) {
        state.withLock { state in
            for (range, first) in runs {
                for (index, frame) in range.frames.enumerated() {
                    state.stored.insert(PageFrameNumber(frame), ordinal: first + UInt32(index))
                }
            }
        }
    }

    /// The root of the page map so far.
    package func root() -> PageDigest {
        state.withLock { $0.map.root() }
    }

    func withState<T: Sendable, E: Error>(
        _ body: (inout State) throws(E) -> T
    ) throws(E) -> T {
        try state.withLock { (state) throws(E) -> T in try body(&state) }
    }

    /// Ends the draft and returns its map, for the next one.
    package func finish() -> PageMap {
        state.withLock { state in
            let map = state.map
            state.map = PageMap()
            return map
        }
    }
}

extension CheckpointDraft.State {
    /// Orphans the pages of frames that a layout no longer has.
    fileprivate mutating func forgetFrames(of run: PageRange, outside layout: GuestLayout) {
        for frame in run.frames {
            let number = PageFrameNumber(frame)
            guard stored.ordinal(number) != nil, !layout.contains(number) else { continue }
            if case .present(let digest) = map[number] { stored.forget(number, holding: digest) }
        }
    }
}
