import GuestModel

// A file `revert-UUID.note` beside the locks, written in the pause once it is known which pages the
// revert compares, and before the first of them is written. The revert that the guard runs if the
// checkpointer dies compares these, instead of all memory and disks. All numbers are little endian.
//
//   0   8   `VARVEREV`; not there until all is written
//   8   8   bytes of the name of a cut
//   16  8   words of the bitmap
//   24  8   runs of the layout
//   32  32  the checkpoint's ID
//   64      the name of the cut, as UTF-8; then the words; then the runs, each as its first frame
//           and the number of its frames
//
// It is about one stop of the domain: it is removed before the next one, and when the domain runs.

/// What a revert in progress has found, for the one that completes it.
enum RevertNote {
    private static let headerByteCount = 64
    private static let magic = Array("VARVEREV".utf8)
    /// More than any domain has.
    private static let frameEndMax: UInt64 = 1 << 40
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
        let name = Array(found.diskCut.utf8)
        let runs = found.layout.runs
        let sizes = [name.count, found.pages.words.count, runs.count].map {
            UInt64($0).littleEndian
        }
        let words =
            (found.pages.words + runs.flatMap { [$0.first.rawValue, UInt64($0.count)] })
            .map(\.littleEndian)
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
        let (nameCount, wordCount, runCount) = (number(8), number(16), number(24))
        let rest = byteCount - headerByteCount - nameCount
        guard nameCount <= nameByteCountMax, rest >= 0, rest % 8 == 0, wordCount <= rest / 8,
            runCount <= rest / 16, wordCount + 2 * runCount == rest / 8
        else { return nil }
        var name = [UInt8](repeating: 0, count: nameCount)
        guard name.withUnsafeMutableBytes({ system_read(file, $0, at: headerByteCount) }),
            let cut = String(validating: name, as: UTF8.self),
            let words = words(file, at: headerByteCount + nameCount, wordCount + 2 * runCount),
            let layout = layout(words[wordCount...])
        else { return nil }
        var pages = DirtyBitmap()
        for (index, word) in words[..<wordCount].enumerated() where word != 0 {
            pages.insert(wordIndex: index, mask: word)
        }
        return NotedRevert(
            checkpoint: CheckpointID(PageDigest(bytes: header[32..<64])), pages: pages,
            layout: layout, diskCut: cut)
    }

    private static func words(_ file: Int32, at offset: Int, _ count: Int) -> [UInt64]? {
        var words = [UInt64](repeating: 0, count: count)
        guard words.withUnsafeMutableBytes({ system_read(file, $0, at: offset) }) else {
            return nil
        }
        return words.map { UInt64(littleEndian: $0) }
    }

    /// Ascending runs; nil if they are not.
    private static func layout(_ words: ArraySlice<UInt64>) -> GuestLayout? {
        var runs: [PageRange] = []
        var end: UInt64 = 0
        for index in stride(from: words.startIndex, to: words.endIndex, by: 2) {
            let (first, count) = (words[index], words[index + 1])
            guard first >= end, count > 0, first < frameEndMax, count <= frameEndMax - first
            else { return nil }
            runs.append(PageRange(first: PageFrameNumber(first), count: Int(count)))
            end = first + count
        }
        return GuestLayout(runs: runs)
    }

    /// Removes what was left.
    static func remove(_ uuid: [UInt8], in directory: String) {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return }
        defer { system_close(folder) }
        system_remove(folder, fileName(uuid))
    }
}
