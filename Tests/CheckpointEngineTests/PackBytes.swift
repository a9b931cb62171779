import CheckpointFormat
import CheckpointStore
import PackStore
import SystemPackage

/// The contents of a store's packs, for comparison.
enum PackBytes {
    /// Every pack and its bytes.
    static func all(in path: FilePath) throws -> [UInt32: [UInt8]] {
        let files = PosixFiles(root: path)
        var packs: [UInt32: [UInt8]] = [:]
        for pack in try PackName.list(files) {
            let file = try files.open(PackName.path(pack), .read)
            packs[pack] = try file.readBytes(Int(file.byteCount()), at: 0)
        }
        return packs
    }
}
