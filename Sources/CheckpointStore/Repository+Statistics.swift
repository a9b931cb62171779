import CheckpointFormat
import GuestModel

/// What a repository holds and what it costs.
public struct RepositoryStatistics: Hashable, Sendable {
    /// Checkpoints.
    public var checkpointCount = 0
    /// Pages of all checkpoints together, zero pages among them.
    public var pageCount = 0
    /// Zero pages of all checkpoints together; they cost nothing.
    public var zeroPageCount = 0
    /// Different pages that are stored.
    public var uniquePageCount = 0
    /// Changed pages of all checkpoints together.
    public var changedPageCount = 0
    /// Bytes of all pages of all checkpoints, as full copies would have them.
    public var logicalByteCount = 0
    /// Bytes of all packs.
    public var byteCount = 0
    /// Of those, bytes that are not page contents.
    public var metadataByteCount = 0
    /// Of all, bytes that no published checkpoint wrote: abandoned transactions.
    public var abandonedByteCount = 0

    /// Full copies over packs.
    public var ratio: Double {
        byteCount == 0 ? 0 : Double(logicalByteCount) / Double(byteCount)
    }

    /// Metadata bytes for each changed page.
    public var metadataBytesPerChangedPage: Double {
        changedPageCount == 0 ? 0 : Double(metadataByteCount) / Double(changedPageCount)
    }
}

extension Repository {
    /// Counts what the repository holds.
    ///
    /// Reads one record a checkpoint.
    public func statistics() throws(RepositoryError) -> RepositoryStatistics {
        var result = RepositoryStatistics()
        var pageBytes = 0
        var added = 0
        for checkpoint in try checkpoints() {
            result.checkpointCount += 1
            result.pageCount += checkpoint.pageCount
            result.zeroPageCount += checkpoint.zeroPageCount
            result.changedPageCount += checkpoint.changedPageCount
            pageBytes += checkpoint.addedByteCount - checkpoint.metadataByteCount
            added += checkpoint.addedByteCount
        }
        result.logicalByteCount = result.pageCount * Page.byteCount
        result.uniquePageCount = try withIndex { try $0.pageCount() }
        let packs = try PackName.list(reader.files)
        for pack in packs {
            do {
                result.byteCount += Int(
                    try reader.files.open(PackName.path(pack), .read).byteCount())
                if try PackScan.isHollow(reader.files, pack: pack) { continue }
                let scan = try PackScan.scan(reader, pack: pack, isNewest: pack == packs.last)
                let frame = Envelope.byteCount + (scan.isSealed ? PackFooter.byteCount : 0)
                added +=
                    frame
                    + scan.entries.reduce(0) {
                        $1.type == .mark
                            ? $0 + RecordHeader.recordByteCount(payload: $1.payloadCount) : $0
                    }
                if let last = scan.entries.last, scan.isSealed {
                    added += Int(scan.fileByteCount) - Int(last.end) - PackFooter.byteCount
                }
            } catch let error as FileError {
                throw RepositoryError(error)
            } catch let error as RepositoryError {
                throw error
            } catch {
                preconditionFailure("reading a pack fails in two ways only: \(error)")
            }
        }
        result.abandonedByteCount = max(0, result.byteCount - added)
        result.metadataByteCount = result.byteCount - pageBytes - result.abandonedByteCount
        return result
    }
}
