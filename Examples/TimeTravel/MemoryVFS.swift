import CSQLite
import Glibc
import VarveCore

// SQLite on tracked memory: the whole database file is one region.
//
//   page 0        magic, then the file's length in bytes (two 64-bit words)
//   page 1 ...    the file's bytes
//
// The rollback journal is SQLite's own, on the heap (PRAGMA journal_mode=MEMORY): checkpoints are
// taken between transactions, when there is none. https://sqlite.org/vfs.html

/// The database file in a region.
struct DatabaseImage: @unchecked Sendable {
    // Unchecked: the bank's gate serializes all access to the region.
    private static let magic: UInt64 = 0x6c69_7465_7661_7276
    private let region: UnsafeMutableRawBufferPointer

    /// Takes a zeroed region, or one that contains an image.
    init(_ region: UnsafeMutableRawBufferPointer) {
        self.region = region
        if region.load(as: UInt64.self) != DatabaseImage.magic {
            region.storeBytes(of: DatabaseImage.magic, as: UInt64.self)
            region.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        }
    }

    /// The file's length.
    var byteCount: Int { Int(region.load(fromByteOffset: 8, as: UInt64.self)) }

    /// The longest file that fits.
    var byteCountMax: Int { region.count - Page.byteCount }

    /// Sets the file's length; false if it does not fit.
    func resize(to byteCount: Int) -> Bool {
        guard byteCount <= byteCountMax else { return false }
        // A store that changes nothing would still make the page dirty.
        if byteCount != self.byteCount {
            region.storeBytes(of: UInt64(byteCount), toByteOffset: 8, as: UInt64.self)
        }
        return true
    }

    /// The file's bytes from an offset.
    func bytes(at offset: Int, count: Int) -> UnsafeMutableRawBufferPointer {
        let start = Page.byteCount + offset
        return UnsafeMutableRawBufferPointer(rebasing: region[start..<start + count])
    }
}

/// An open file as SQLite sees it; it begins with SQLite's own part.
private struct MemoryFile {
    var base: sqlite3_file
    var image: UnsafeMutablePointer<DatabaseImage>
}

/// A SQLite file system with a single file: the image.
///
/// Registered once and for the life of the process, as SQLite requires.
enum MemoryVFS {
    /// The name to open databases with.
    static let name = "varve-memory"

    /// Creates the file system and registers it.
    static func register(_ image: DatabaseImage) throws {
        let shared = UnsafeMutablePointer<DatabaseImage>.allocate(capacity: 1)
        shared.initialize(to: image)
        let vfs = UnsafeMutablePointer<sqlite3_vfs>.allocate(capacity: 1)
        vfs.initialize(to: sqlite3_vfs())
        vfs.pointee.iVersion = 1
        vfs.pointee.szOsFile = Int32(MemoryLayout<MemoryFile>.size)
        vfs.pointee.mxPathname = 512
        vfs.pointee.zName = UnsafePointer(strdup(name))
        vfs.pointee.pAppData = UnsafeMutableRawPointer(shared)
        vfs.pointee.xOpen = { vfs, _, file, flags, outFlags in
            guard let vfs, let file, let data = vfs.pointee.pAppData else { return SQLITE_ERROR }
            let memory = UnsafeMutableRawPointer(file).assumingMemoryBound(to: MemoryFile.self)
            // Only the database itself: journals and temporary files live on the heap.
            guard flags & SQLITE_OPEN_MAIN_DB != 0 else { return SQLITE_CANTOPEN }
            memory.pointee.base.pMethods = UnsafePointer(MemoryVFS.methods)
            memory.pointee.image = data.assumingMemoryBound(to: DatabaseImage.self)
            outFlags?.pointee = flags
            return SQLITE_OK
        }
        vfs.pointee.xDelete = { _, _, _ in SQLITE_OK }
        vfs.pointee.xAccess = { _, _, _, result in
            result?.pointee = 0
            return SQLITE_OK
        }
        vfs.pointee.xFullPathname = { _, path, count, result in
            guard let path, let result, strlen(path) < Int(count) else { return SQLITE_CANTOPEN }
            strcpy(result, path)
            return SQLITE_OK
        }
        vfs.pointee.xRandomness = { _, count, bytes in
            guard let bytes else { return 0 }
            for index in 0..<Int(count) { bytes[index] = CChar.random(in: .min ... .max) }
            return count
        }
        vfs.pointee.xSleep = { _, microseconds in
            usleep(UInt32(microseconds))
            return microseconds
        }
        vfs.pointee.xCurrentTime = { _, result in
            result?.pointee = 2_440_587.5 + Double(time(nil)) / 86_400
            return SQLITE_OK
        }
        vfs.pointee.xGetLastError = { _, _, _ in 0 }
        guard sqlite3_vfs_register(vfs, 0) == SQLITE_OK else {
            throw DemoError("SQLite rejected the memory file system")
        }
    }

    private nonisolated(unsafe) static let methods: UnsafeMutablePointer<sqlite3_io_methods> = {
        let methods = UnsafeMutablePointer<sqlite3_io_methods>.allocate(capacity: 1)
        methods.initialize(to: sqlite3_io_methods())
        methods.pointee.iVersion = 1
        methods.pointee.xClose = { _ in SQLITE_OK }
        methods.pointee.xRead = { file, buffer, count, offset in
            guard let image = MemoryVFS.image(file), let buffer else { return csqlite_ioerr_read }
            let available = max(0, min(Int(count), image.byteCount - Int(offset)))
            if available > 0 {
                let source = image.bytes(at: Int(offset), count: available)
                UnsafeMutableRawBufferPointer(start: buffer, count: available)
                    .copyMemory(from: UnsafeRawBufferPointer(source))
            }
            if available == Int(count) { return SQLITE_OK }
            memset(buffer + available, 0, Int(count) - available)
            return csqlite_ioerr_short_read
        }
        methods.pointee.xWrite = { file, buffer, count, offset in
            guard let image = MemoryVFS.image(file), let buffer else { return csqlite_ioerr_write }
            let end = Int(offset) + Int(count)
            guard image.resize(to: max(end, image.byteCount)) else { return SQLITE_FULL }
            let target = image.bytes(at: Int(offset), count: Int(count))
            target.copyMemory(from: UnsafeRawBufferPointer(start: buffer, count: Int(count)))
            return SQLITE_OK
        }
        methods.pointee.xTruncate = { file, count in
            guard let image = MemoryVFS.image(file) else { return csqlite_ioerr_truncate }
            return image.resize(to: Int(count)) ? SQLITE_OK : SQLITE_FULL
        }
        methods.pointee.xSync = { _, _ in SQLITE_OK }
        methods.pointee.xFileSize = { file, result in
            guard let image = MemoryVFS.image(file) else { return csqlite_ioerr_fstat }
            result?.pointee = sqlite3_int64(image.byteCount)
            return SQLITE_OK
        }
        methods.pointee.xLock = { _, _ in SQLITE_OK }
        methods.pointee.xUnlock = { _, _ in SQLITE_OK }
        methods.pointee.xCheckReservedLock = { _, result in
            result?.pointee = 0
            return SQLITE_OK
        }
        methods.pointee.xFileControl = { _, _, _ in SQLITE_NOTFOUND }
        methods.pointee.xSectorSize = { _ in Int32(Page.byteCount) }
        methods.pointee.xDeviceCharacteristics = { _ in 0 }
        return methods
    }()

    private static func image(_ file: UnsafeMutablePointer<sqlite3_file>?) -> DatabaseImage? {
        file.map {
            UnsafeMutableRawPointer($0).assumingMemoryBound(to: MemoryFile.self).pointee.image
                .pointee
        }
    }
}
