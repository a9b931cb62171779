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
        // Where the next one begins depends on the size with which the program was compiled.
        let stride = UnsafeRawPointer(first).load(as: Int.self)
        var place = UnsafeRawPointer(first)
        var found: [ReflinkDisks.File] = []
        for _ in 0..<files.count {
            guard let file = try varve_file.read(place.assumingMemoryBound(to: varve_file.self)),
                file.size == stride
            else {
                throw Failure(
                    VARVE_INVALID_ARGUMENT, "all files of an array must have the same size")
            }
            place += stride
            found.append(
                ReflinkDisks.File(
                    name: try require(string: file.name, "the name of a file"),
                    path: try filePath(file.path, "the path of a file"),
                    sectorByteCount: file.block_byte_count == 0 ? 512 : Int(file.block_byte_count)))
        }
        let directory = try filePath(files.state_directory, "the state directory")
        let clones =
            files.clone_directory == nil
            ? nil : try filePath(files.clone_directory, "the clone directory")
        let group = try ReflinkDisks(
            files: found, stateDirectory: directory, cloneDirectory: clones)
        // Wrong names and missing files are refused before the session begins.
        _ = try group.disks()
        return group
    }
}
