public import GuestModel
import Synchronization

/// Simulated disks that their guest's process itself writes: they go back with its memory.
///
/// Calls fail on request, before or after their effect.
public final class OwnDisks: RevertibleDisks {
    /// The disks.
    public let inner = SimulatedDisks()

    /// Whether a write that fails has no effect at all.
    public var failsWithoutEffect: Bool {
        get { withoutEffect.withLock { $0 } }
        set { withoutEffect.withLock { $0 = newValue } }
    }
    private let withoutEffect = Mutex(false)

    /// Creates a group without disks.
    public init() {}

    /// The disks, in the order of their names.
    public func disks() throws(GuestError) -> [GuestDisk] { try inner.disks() }

    /// Prepares a cut.
    public func prepareCut() throws(GuestError) -> any DiskCut { try inner.prepareCut() }

    /// A cut by its name.
    public func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        try inner.standingCut(name)
    }

    /// Sets the size of a disk.
    public func resize(_ disk: String, to byteCount: UInt64) throws(GuestError) {
        try inner.check(.resize)
        change(disk) { bytes in
            let count = Int(byteCount)
            if count < bytes.count {
                bytes.removeLast(bytes.count - count)
            } else {
                bytes += [UInt8](repeating: 0, count: count - bytes.count)
            }
        }
    }

    /// Writes blocks; a call that fails writes the first half of them, or none.
    public func write(
        _ blocks: BlockRange, of disk: String, from source: UnsafeRawBufferPointer
    ) throws(GuestError) {
        precondition(source.count == blocks.count * 4096, "a block has 4096 bytes")
        let fails: GuestError?
        do throws(GuestError) {
            try inner.check(.write)
            fails = nil
        } catch {
            fails = error
        }
        if let fails, failsWithoutEffect { throw fails }
        let count = fails == nil ? source.count : source.count / 2
        change(disk) { bytes in
            let start = Int(blocks.lowerBound) * 4096
            let end = min(bytes.count, start + count)
            precondition(start < bytes.count, "a write past the end of a disk")
            bytes.replaceSubrange(start..<end, with: source[..<(end - start)])
        }
        if let fails { throw fails }
    }

    private func change(_ disk: String, _ body: (inout [UInt8]) -> Void) {
        var contents = inner.contents
        guard var bytes = contents[disk] else { preconditionFailure("no disk \(disk)") }
        body(&bytes)
        contents[disk] = bytes
        inner.set(contents)
    }
}
