import CVarve
import GuestDisks
import GuestModel
import SystemPackage

/// The files that a program names as its guest's disks.
enum FileDisks {
    /// As many as a checkpoint can have.
    private static let countMax = 1023

    /// A group of them; nil for NULL.
    static func make(_ pointer: UnsafePointer<varve_files>?) throws -> ReflinkDisks? {
        guard let files = try varve_files.read(pointer) else { return nil }
        guard let first = files.files, 1...countMax ~= files.count else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "there are \(files.count) files; a guest with files has 1 to \(countMax)")
        }
        var found: [ReflinkDisks.File] = []
        try varve_file.forEach(of: first, count: files.count, "files") { (file) throws(Failure) in
            found.append(
                ReflinkDisks.File(
                    name: try require(string: file.name, "the name of a file"),
                    path: try filePath(file.path, "the path of a file"),
                    sectorByteCount: file.block_byte_count == 0 ? 512 : Int(file.block_byte_count)))
        }
        let directory = try filePath(files.state_directory, "the state directory")
        let clones = try optional(path: files.clone_directory, "the clone directory")
        let group = try ReflinkDisks(
            files: found, stateDirectory: directory, cloneDirectory: clones)
        // Wrong names and missing files are refused before the session begins.
        _ = try group.disks()
        return group
    }
}
