package import CheckpointFormat
import Glibc

extension RepositoryError {
    /// Neither a damaged record nor a failure of the disk: the same call may succeed later.
    package init(_ error: CompressionMemoryError) {
        self.init(
            .callFailed,
            "there is no memory for zstd's tables, some hundred kilobytes; raise the limit of "
                + "memory (ulimit -v, memory.max of the cgroup) or end other programs",
            errno: ENOMEM)
    }
}

extension Compressor {
    /// A compressor, for callers whose errors are the repository's.
    package static func allocate(level: CompressionLevel) throws(RepositoryError) -> Compressor {
        do throws(CompressionMemoryError) {
            return try Compressor(level: level)
        } catch {
            throw RepositoryError(error)
        }
    }
}

extension Decompressor {
    /// A decompressor, for callers whose errors are the repository's.
    package static func allocate() throws(RepositoryError) -> Decompressor {
        do throws(CompressionMemoryError) {
            return try Decompressor()
        } catch {
            throw RepositoryError(error)
        }
    }
}
