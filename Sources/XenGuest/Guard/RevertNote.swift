import Glibc
import GuestModel

// A file `revert-UUID.pages` beside the locks, written in the pause once it is known which pages
// the revert compares, and before the first of them is written. The revert that the guard runs if
// the checkpointer dies compares these, instead of all memory. All numbers are little endian.
//
//   0   8   `VARVEREV`; not there until all is written
//   8   8   bytes of the key
//   16  8   words of the bitmap
//   24      the key, which is the ID of the checkpoint as text; then the words
//
// It is about one stop of the domain: it is removed before the next one, and when the domain runs.

/// The pages of a revert in progress, for the one that completes it.
enum RevertNote {
    private static let headerByteCount = 24
    private static let magic = Array("VARVEREV".utf8)
    private static func key(_ checkpoint: CheckpointID) -> [UInt8] { Array("\(checkpoint)".utf8) }

    private static func name(_ uuid: [UInt8]) -> String {
        "revert-" + uuid.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined() + ".pages"
    }

    /// Leaves the pages.
    ///
    /// A failure is ignored: then all memory is compared.
    static func leave(
        _ pages: DirtyBitmap, to checkpoint: CheckpointID, _ uuid: [UInt8], in directory: String
    ) {
        let key = key(checkpoint)
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return }
        defer { system_close(folder) }
        let file = system_openAt(folder, name(uuid))
        guard file >= 0 else { return }
        defer { system_close(file) }
        guard system_truncate(file) == 0 else { return }
        let words = pages.words
        let sizes = [UInt64(key.count), UInt64(words.count)].map(\.littleEndian)
        var header = magic
        sizes.withUnsafeBytes { header += $0 }
        let isWritten = words.withUnsafeBytes {
            system_write(file, $0, at: headerByteCount + key.count)
                && key.withUnsafeBytes { system_write(file, $0, at: headerByteCount) }
        }
        // Without its header a file says nothing.
        if isWritten { _ = header.withUnsafeBytes { system_write(file, $0, at: 0) } }
    }

    /// The pages that were left; nil if there are none for this checkpoint.
    static func pages(
        to checkpoint: CheckpointID, _ uuid: [UInt8], in directory: String
    ) -> DirtyBitmap? {
        let key = key(checkpoint)
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return nil }
        defer { system_close(folder) }
        let file = system_openPresent(folder, name(uuid))
        guard file >= 0 else { return nil }
        defer { system_close(file) }
        guard system_isRegularFile(file), let byteCount = system_byteCount(file) else {
            return nil
        }
        var head = [UInt8](repeating: 0, count: headerByteCount + key.count)
        guard head.withUnsafeMutableBytes({ system_read(file, $0, at: 0) }) else { return nil }
        func number(_ offset: Int) -> Int {
            let value = head.withUnsafeBytes {
                UInt64(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            }
            return Int(clamping: value)
        }
        let (keyCount, wordCount) = (number(8), number(16))
        guard head.starts(with: magic), keyCount == key.count, head.suffix(key.count) == key[...],
            byteCount % 8 == head.count % 8, wordCount == (byteCount - head.count) / 8
        else { return nil }
        var words = [UInt64](repeating: 0, count: wordCount)
        guard words.withUnsafeMutableBytes({ system_read(file, $0, at: head.count) }) else {
            return nil
        }
        var pages = DirtyBitmap()
        for (index, word) in words.enumerated() where word != 0 {
            pages.insert(wordIndex: index, mask: word)
        }
        return pages
    }

    /// Removes what was left.
    static func remove(_ uuid: [UInt8], in directory: String) {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return }
        defer { system_close(folder) }
        system_remove(folder, name(uuid))
    }
}
