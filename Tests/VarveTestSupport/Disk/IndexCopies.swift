import CheckpointStore
import PackStore
package import SystemPackage

// LMDB writes its file past the seam and syncs it only when a writer opens and closes, so a power
// cut leaves any of the versions that each of its pages had since. The copies of a run, one a call,
// are those versions.

/// The index as it was at each moment of a run, and what a crash makes of it.
package struct IndexCopies: Sendable {
    /// What a crash leaves.
    package enum Fate: CaseIterable, Sendable {
        /// The process died: the file is as it was.
        case exact
        /// The file is gone.
        case deleted
        /// Bytes that mean nothing.
        case garbage
        /// The file as it was when it was last synced, or before.
        case old
        /// Of each page any version that it had.
        case torn
    }

    private static let pageByteCount = 4096

    private var versions: [[UInt8]] = []
    /// The version at each moment; -1: there was none.
    private var moments: [Int] = []

    package init() {}

    /// Notes the index of a repository as it is now; a moment later than all before.
    package mutating func append(from root: FilePath) {
        guard let file = try? PosixFiles(root: root).open("index/data.mdb", .read),
            let size = try? file.byteCount(), let bytes = try? file.readBytes(Int(size), at: 0)
        else {
            moments.append(-1)
            return
        }
        if versions.last != bytes { versions.append(bytes) }
        moments.append(versions.count - 1)
    }

    /// Puts what a crash at a moment leaves into a directory.
    ///
    /// - Parameter synced: the moment at which the file was synced last; `old` goes back to it, and
    ///   `torn` mixes what came since.
    package func write(
        _ fate: Fate, moment: Int, synced: Int, to root: FilePath, _ random: inout SeededGenerator
    ) throws {
        let last = moments[moment]
        let first = max(0, moments[min(synced, moment)])
        guard last >= 0 else { return }
        let bytes: [UInt8]
        switch fate {
        case .exact: bytes = versions[last]
        case .deleted: return
        case .garbage:
            bytes = (0..<20_000).map { _ in UInt8.random(in: 0...255, using: &random) }
        case .old: bytes = versions[first]
        case .torn: bytes = torn(first...max(first, last), &random)
        }
        let files = PosixFiles(root: root)
        try files.createDirectory("index")
        try files.open("index/data.mdb", .create).write(bytes, at: 0)
    }

    private func torn(_ range: ClosedRange<Int>, _ random: inout SeededGenerator) -> [UInt8] {
        var result = versions[range.upperBound]
        for start in stride(from: 0, to: result.count, by: IndexCopies.pageByteCount) {
            let version = versions[Int.random(in: range, using: &random)]
            let end = min(start + IndexCopies.pageByteCount, result.count)
            for position in start..<end {
                result[position] = position < version.count ? version[position] : 0
            }
        }
        return result
    }
}
