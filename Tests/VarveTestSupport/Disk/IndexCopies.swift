import CheckpointStore
import PackStore
package import SystemPackage

// LMDB writes its file without the simulated files and syncs it only when a writer opens and
// closes, so after a power cut each of its pages may have any version since then. The copies of a
// run, one for each call, are those versions.

/// The index at each moment of a run, and the effects of a crash on it.
package struct IndexCopies: Sendable {
    /// The effect of a crash.
    package enum Fate: CaseIterable, Sendable {
        /// The process died: the file is unchanged.
        case exact
        /// The file is gone.
        case deleted
        /// Random bytes.
        case garbage
        /// The file at its last sync, or before.
        case old
        /// Each page has any of its versions.
        case torn
    }

    private static let pageByteCount = 4096

    private var versions: [[UInt8]] = []
    /// The version at each moment; -1: there was none.
    private var moments: [Int] = []

    package init() {}

    /// Records the index of a repository at present, as a moment later than all before.
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

    /// Puts the result of a crash at a moment into a directory.
    ///
    /// - Parameter synced: the moment of the file's last sync; `old` goes back to it, and `torn`
    ///   mixes the versions since.
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
