import CheckpointFormat
package import CheckpointIndex
package import GuestModel
import PackStore
import Synchronization

/// A checkpoint in preparation: the parent's page map, updated as pages are added.
///
/// Frame numbers contain the number of the volume; a call is for frames of one volume. Blocks of a
/// disk that are zero do not exist in its map.
///
/// Workers call it from several threads, each for different frames. Two versions of one frame must
/// be added one after the other; the last one counts.
package final class CheckpointDraft: Sendable {
    struct State: ~Copyable, Sendable {
        var map: PageMap
        var changed = FrameSet()
        var stored: StoredPages
    }

    private let state: Mutex<State>

    /// Starts from the parent's map, which then belongs to the draft.
    package init(map: PageMap) {
        state = Mutex(State(map: map, stored: StoredPages(disksIn: map.place)))
    }

    /// Makes the frames of a layout of the memory exist.
    ///
    /// New ones are zero until they are set.
    package func adopt(_ layout: GuestLayout) {
        state.withLock { state in
            let before = state.map.memory.layout
            guard before != layout else { return }
            for run in before.runs { state.forgetFrames(of: run, outside: layout) }
            state.changed.formUnion(FrameSet(state.map.memory.adopt(layout)))
        }
    }

    /// Makes the draft have exactly these disks, at their sizes.
    ///
    /// - Parameter parent: the checkpoint that it follows.
    func adopt(_ disks: [VolumeRecord], after parent: Manifest?) {
        state.withLock { state in
            for volume in parent?.volumes ?? [] where volume.isDisk {
                guard !disks.contains(where: { $0.number == volume.number }) else { continue }
                state.map.remove(volume.number)
                guard volume.frameEnd > 0 else { continue }
                let range = PageRange(first: PageFrameNumber(0), count: Int(volume.frameEnd))
                state.changed.insert(range.of(volume.number))
            }
            for disk in disks where disk.blockCount < MapBounds.frameEndMax {
                let rest = Int(MapBounds.frameEndMax - disk.blockCount)
                state.remove(
                    PageRange(first: PageFrameNumber(disk.blockCount, in: disk.number), count: rest)
                )
            }
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
        guard frames.count > 0 else { return }
        let volume = PageFrameNumber(frames[0]).volume
        state.withLock { state in
            state.map[volume].set(frames, from: volume.firstFrame, contents) { position, old in
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
            guard range.volume == .memory else { return state.remove(range) }
            state.map.memory.setZero(range) { frame, digest in
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

    /// The root of the memory's page map so far.
    package func memoryRoot() -> PageDigest {
        state.withLock { $0.map.memory.root() }
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
            map.releasePages()
            state = State(
                map: PageMap(disksIn: .process), stored: StoredPages(disksIn: .process))
            return map
        }
    }
}

extension CheckpointDraft.State {
    /// Removes frames of a volume.
    fileprivate mutating func remove(_ range: PageRange) {
        let volume = range.volume
        let map = map[volume]
        let firstWord = Int(volume.firstFrame / 64)
        map.remove(range.inVolume) { frame, digest in
            stored.forget(PageFrameNumber(frame.rawValue, in: volume), holding: digest)
        } changed: { word, mask in
            changed.insert(wordIndex: firstWord + word, mask: mask)
        }
    }

    /// Orphans the pages of frames that a layout no longer has.
    fileprivate mutating func forgetFrames(of run: PageRange, outside layout: GuestLayout) {
        for frame in run.frames {
            let number = PageFrameNumber(frame)
            guard stored.ordinal(number) != nil, !layout.contains(number) else { continue }
            if case .present(let digest) = map[number] { stored.forget(number, holding: digest) }
        }
    }
}
