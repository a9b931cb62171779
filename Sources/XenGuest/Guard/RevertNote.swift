import GuestModel

// A file `revert-UUID.note` beside the locks, written in the pause once it is known which pages the
// revert compares, and before the first of them is written. The revert that the guard runs if the
// checkpointer dies compares these, instead of all memory and disks. All numbers are little endian.
//
//   0   8   `VARVEREV`; not there until all is written
//   8   8   bytes of the name of a cut
//   16  8   words of the bitmap
//   24  32  the checkpoint's ID
//   56      the name of the cut, as UTF-8; then the words
//
// It is about one stop of the domain: it is removed before the next one, and when the domain runs.

/// What a revert in progress has found, for the one that completes it.
enum RevertNote {
    private static let headerByteCount = 56
    private static let magic = Array("VARVEREV".utf8)
    /// `DiskCut.name`.
    private static let nameByteCountMax = 4096

    private static func fileName(_ uuid: [UInt8]) -> String {
        "revert-" + uuid.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined() + ".note"
    }

    /// Leaves a note.
    ///
    /// A failure is ignored: then everything is compared.
    static func leave(_ found: NotedRevert, _ uuid: [UInt8], in directory: String) {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return }
        defer { system_close(folder) }
        let file = system_openAt(folder, fileName(uuid))
        guard file >= 0 else { return }
        defer { system_close(file) }
        guard system_truncate(file) == 0 else { return }
        let words = found.pages.words
        let name = Array(found.diskCut.utf8)
        let sizes = [UInt64(name.count), UInt64(words.count)].map(\.littleEndian)
        var header = magic
        sizes.withUnsafeBytes { header += $0 }
        header += found.checkpoint.digest.bytes
        let isWritten = words.withUnsafeBytes {
            system_write(file, $0, at: headerByteCount + name.count)
        }
        // Without its header a file says nothing.
        if isWritten { _ = (header + name).withUnsafeBytes { system_write(file, $0, at: 0) } }
    }

    /// The note that was left; nil if there is none, or it is not whole.
    static func read(_ uuid: [UInt8], in directory: String) -> NotedRevert? {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return nil }
        defer { system_close(folder) }
        let file = system_openPresent(folder, fileName(uuid))
        guard file >= 0 else { return nil }
        defer { system_close(file) }
        guard system_isRegularFile(file), let byteCount = system_byteCount(file) else {
            return nil
        }
        var header = [UInt8](repeating: 0, count: headerByteCount)
        guard header.withUnsafeMutableBytes({ system_read(file, $0, at: 0) }),
            header.starts(with: magic)
        else { return nil }
        func number(_ offset: Int) -> Int {
            let value = header.withUnsafeBytes {
                UInt64(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            }
            return Int(clamping: value)
        }
        let (nameCount, wordCount) = (number(8), number(16))
        guard nameCount <= nameByteCountMax,
            byteCount - headerByteCount - nameCount >= 0,
            wordCount == (byteCount - headerByteCount - nameCount) / 8,
            (byteCount - headerByteCount - nameCount) % 8 == 0
        else { return nil }
        var name = [UInt8](repeating: 0, count: nameCount)
        guard name.withUnsafeMutableBytes({ system_read(file, $0, at: headerByteCount) }),
            let cut = String(validating: name, as: UTF8.self),
            let pages = bitmap(file, at: headerByteCount + nameCount, wordCount: wordCount)
        else { return nil }
        let id = CheckpointID(PageDigest(bytes: header[24..<56]))
        return NotedRevert(checkpoint: id, pages: pages, diskCut: cut)
    }

    private static func bitmap(_ file: Int32, at offset: Int, wordCount: Int) -> DirtyBitmap? {
        var words = [UInt64](repeating: 0, count: wordCount)
        guard words.withUnsafeMutableBytes({ system_read(file, $0, at: offset) }) else {
            return nil
        }
        var pages = DirtyBitmap()
        for (index, word) in words.enumerated() where word != 0 {
            pages.insert(wordIndex: index, mask: UInt64(littleEndian: word))
        }
        return pages
    }

    /// Removes what was left.
    static func remove(_ uuid: [UInt8], in directory: String) {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return }
        defer { system_close(folder) }
        system_remove(folder, fileName(uuid))
    }
}
