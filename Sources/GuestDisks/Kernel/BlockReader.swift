import Glibc
import GuestModel
import SystemPackage

/// Reads blocks of a frozen disk, from any thread.
///
/// Past the page cache where the destination's alignment allows it: what is read once should not
/// displace the host's cache. Both ways may be mixed, since no one writes to the disk.
final class BlockReader: Sendable {
    private let cached: OpenFile
    private let direct: OpenFile?
    private let byteCount: Int
    private let disk: String

    /// Opens a file or device twice; it may be unlinked afterwards.
    init(_ path: FilePath, of disk: GuestDisk) throws(GuestError) {
        cached = try OpenFile(path)
        byteCount = Int(clamping: disk.byteCount)
        self.disk = disk.name
        let descriptor = system_openDirect(path)
        // Some file systems refuse it (EINVAL); the cache is right too.
        direct = descriptor >= 0 ? OpenFile(descriptor: descriptor, path: path) : nil
    }

    /// `DiskCut.read`.
    func read(
        _ blocks: BlockRange, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let limit = UInt64(Int.max / Page.byteCount)
        guard blocks.upperBound <= limit, destination.count == blocks.count * Page.byteCount else {
            throw GuestError(
                code: .invalidRange,
                message: "blocks \(blocks.lowerBound)..<\(blocks.upperBound) do not fill the "
                    + "\(destination.count) bytes to be read")
        }
        guard destination.count > 0 else { return }
        let offset = Int(blocks.lowerBound) * Page.byteCount
        do throws(GuestError) {
            try read(at: offset, into: destination)
        } catch {
            throw GuestError(
                code: error.code,
                message: "the cut of disk \(disk) cannot be read: \(error.message)",
                errno: error.errno)
        }
    }

    private func read(
        at offset: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        let isAligned = Int(bitPattern: destination.baseAddress) % Page.byteCount == 0
        if let direct, isAligned, offset + destination.count <= byteCount {
            do throws(GuestError) {
                return try direct.read(into: destination, at: offset, end: byteCount)
            } catch {
                // Alignment beyond a page is asked for by no common device, but allowed.
                guard error.errno == EINVAL else { throw error }
            }
        }
        try cached.read(into: destination, at: offset, end: byteCount)
        cached.withDescriptor { system_forget($0, offset..<offset + destination.count) }
    }
}
