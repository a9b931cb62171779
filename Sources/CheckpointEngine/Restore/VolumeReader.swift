public import CheckpointIndex
public import CheckpointStore
public import GuestModel
import PackStore
import Synchronization

/// Reads a volume of a checkpoint and verifies it: all of it in order, as files and pipes are
/// written, or single ranges in any order.
///
/// Pages of the memory are named by their frames, and blocks of 4 KiB of a disk by their numbers
/// from the disk's beginning. A reader must not be used by several threads at once. It needs memory
/// for the page map, and 64 MiB while all of the volume is read. The checkpoint is leased while the
/// reader exists, so prune does not remove its pages.
///
/// Packs hold pages in the order in which they changed. A volume that is read as a whole is put in
/// order in windows of 32 MiB: one is filled on all processors while the previous one is delivered.
public struct VolumeReader {
    /// Pages in a window.
    static let windowPageCount = 8192

    let repository: Repository
    let checkpoint: Checkpoint
    private let lease: CheckpointLease
    let map: VolumeMap
    /// The volume.
    public let volume: Volume
    /// The frames that exist; of a disk, the blocks that are not zero.
    public let layout: GuestLayout
    /// The checkpoint's state other than memory.
    public let state: GuestState

    /// Creates a reader, which reads the checkpoint's page map and state.
    ///
    /// Blocks for the disk, for a time in proportion to what the volume holds. Throws the
    /// repository's `unknownName` if the checkpoint has no such volume.
    ///
    /// - Parameters:
    ///   - checkpoint: a checkpoint of the repository.
    ///   - repository: the repository.
    ///   - name: the volume: `memory`, or a disk's name.
    public init(
        _ checkpoint: Checkpoint, from repository: Repository, volume name: String = "memory"
    ) throws(CheckpointError) {
        do throws(RepositoryError) {
            lease = try repository.lease([checkpoint.id])
            volume = try checkpoint.volume(named: name)
            let number = volume.number
            map = try repository.pageMap(of: checkpoint, volumes: [number]).map[number]
            state = try repository.state(of: checkpoint)
        } catch {
            throw CheckpointError(error)
        }
        self.repository = repository
        self.checkpoint = checkpoint
        layout = map.layout
    }

    /// Contiguous memory for pages of ascending frames.
    private final class Window: PageTarget {
        let runs: [PageRange]
        /// Where each run begins in the memory, in pages.
        private let starts: [Int]
        // Each page is filled by one thread, then read; freed with the window.
        private nonisolated(unsafe) let memory: UnsafeMutableRawBufferPointer

        init(_ runs: [PageRange]) {
            self.runs = runs
            var starts: [Int] = []
            var count = 0
            for run in runs {
                starts.append(count)
                count += run.count
            }
            self.starts = starts
            memory = PageMemory.allocate(byteCount: count * Page.byteCount)
        }

        deinit { PageMemory.deallocate(memory) }

        var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(memory) }

        func place(_ range: PageRange) -> UnsafeMutableRawBufferPointer? { memory(of: range) }

        func take(_ range: PageRange, _ bytes: UnsafeRawBufferPointer, isPlaced: Bool) {
            if !isPlaced { memory(of: range).copyMemory(from: bytes) }
        }

        /// The memory for frames that lie in one run.
        func memory(of range: PageRange) -> UnsafeMutableRawBufferPointer {
            var (low, high) = (0, runs.count)
            while high - low > 1 {
                let middle = (low + high) / 2
                if runs[middle].first <= range.first { low = middle } else { high = middle }
            }
            let offset = starts[low] + Int(range.first.rawValue - runs[low].first.rawValue)
            let start = offset * Page.byteCount
            return UnsafeMutableRawBufferPointer(
                rebasing: memory[start..<start + range.byteCount])
        }
    }

    /// Reads all pages.
    ///
    /// Blocks. When this throws, also because it was cancelled, a part of the pages was delivered.
    ///
    /// - Parameters:
    ///   - cancellation: ends the read with `cancelled`, between two windows.
    ///   - progress: called in phase `reading` with pages.
    ///   - deliver: called on this thread with ascending runs and their contents without gaps,
    ///     which are valid only during the call. What it throws is the error's `cause`.
    public func read(
        cancellation: Cancellation? = nil, progress: ProgressHandler? = nil,
        deliver: (_ runs: [PageRange], _ contents: UnsafeRawBufferPointer) throws -> Void
    ) throws(CheckpointError) {
        let control = WorkControl(
            "reading the checkpoint was cancelled; a part of it was delivered", cancellation,
            progress)
        do {
            try read(control, deliver)
        } catch {
            throw CheckpointError(wrapping: error)
        }
    }

    private func read(
        _ control: WorkControl,
        _ deliver: (_ runs: [PageRange], _ contents: UnsafeRawBufferPointer) throws -> Void
    ) throws {
        let windows = VolumeReader.cut(layout.runs)
        var done = 0
        var next = windows.first.map { filling($0) }
        for index in windows.indices {
            guard let window = try next?.wait() else { return }
            next = index + 1 < windows.count ? filling(windows[index + 1]) : nil
            done += window.bytes.count / Page.byteCount
            do {
                try deliver(window.runs, window.bytes)
                try control.report(.reading, .pages, done, of: layout.pageCount)
            } catch {
                // The other thread uses this reader's repository until it is done.
                _ = try? next?.wait()
                throw error
            }
        }
    }

    private static func cut(_ runs: [PageRange]) -> [[PageRange]] {
        var result: [[PageRange]] = []
        var window: [PageRange] = []
        var room = windowPageCount
        for run in runs {
            var (first, rest) = (run.first.rawValue, run.count)
            while rest > 0 {
                let count = min(rest, room)
                window.append(PageRange(first: PageFrameNumber(first), count: count))
                first += UInt64(count)
                rest -= count
                room -= count
                if room == 0 {
                    result.append(window)
                    window = []
                    room = windowPageCount
                }
            }
        }
        return window.isEmpty ? result : result + [window]
    }

    /// A window that a thread fills.
    private struct Filling {
        /// The thread that fills the window; nil if none could be started and the caller's did.
        let thread: Threads.Thread?
        let result: Result

        final class Result: Sendable {
            let value = Mutex<Swift.Result<Window, CheckpointError>?>(nil)
        }

        func wait() throws(CheckpointError) -> Window {
            thread?.join()
            guard let result = result.value.withLock({ $0 }) else {
                preconditionFailure("a thread that has ended has set its result")
            }
            return try result.get()
        }
    }

    private func filling(_ runs: [PageRange]) -> Filling {
        let result = Filling.Result()
        let window = Window(runs)
        var pages: [(frame: PageFrameNumber, digest: PageDigest)] = []
        for run in runs {
            for number in run.frames {
                let frame = PageFrameNumber(number)
                switch map[frame] {
                case .present(let digest): pages.append((frame, digest))
                case .zero, .absent:
                    window.memory(of: PageRange(first: frame, count: 1))
                        .initializeMemory(as: UInt8.self, repeating: 0)
                }
            }
        }
        let supply = PageSupply(
            repository: repository, checkpoint: checkpoint, volume: volume.number)
        let fill = { @Sendable [pages] in
            let outcome: Swift.Result<Window, CheckpointError>
            do {
                _ = try supply.read(pages, into: window)
                outcome = .success(window)
            } catch {
                outcome = .failure(CheckpointError(wrapping: error))
            }
            result.value.withLock { $0 = outcome }
        }
        let thread = try? Threads.Thread(fill)
        if thread == nil { fill() }
        return Filling(thread: thread, result: result)
    }
}
