import Glibc
package import GuestModel

extension PageMemory {
    /// Like `allocate`, but fails if there is no memory.
    ///
    /// - Parameter path: the file whose contents it is for.
    package static func reserve(
        byteCount: Int, for path: String
    ) throws(FileError) -> UnsafeMutableRawBufferPointer {
        guard let memory = allocateIfPossible(byteCount: byteCount) else {
            throw FileError(call: "mmap", path: path, errno: ENOMEM)
        }
        return memory
    }

    /// The same for the contents of any pack, for callers whose errors are the repository's.
    package static func reserve(
        byteCount: Int
    ) throws(RepositoryError) -> UnsafeMutableRawBufferPointer {
        do throws(FileError) {
            return try reserve(byteCount: byteCount, for: StoreDirectory.packs)
        } catch {
            throw RepositoryError(error)
        }
    }
}
