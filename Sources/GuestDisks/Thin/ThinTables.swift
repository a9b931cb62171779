import GuestModel

// Tables and status of thin volumes and their pools, as text of the kernel:
// Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Reference".

/// `thin POOL_DEV ID [ORIGIN]`.
struct ThinTable: Hashable, Sendable {
    let pool: DeviceNumber
    let id: UInt32
    /// A device outside of the pool that is read where nothing was written; nil if there is none.
    let externalOrigin: String?

    init?(_ parameters: String) {
        let words = parameters.split(separator: " ")
        guard 2...3 ~= words.count, let pool = DeviceNumber(words[0]), let id = UInt32(words[1])
        else { return nil }
        self.pool = pool
        self.id = id
        externalOrigin = words.count == 3 ? String(words[2]) : nil
    }
}

/// `thin-pool METADATA_DEV DATA_DEV BLOCK_SIZE LOW_WATER ...`.
struct PoolTable: Hashable, Sendable {
    let metadata: DeviceNumber
    /// Bytes of one block of the pool: 64 KiB to 1 GiB.
    let blockByteCount: UInt64

    init?(_ parameters: String) {
        let words = parameters.split(separator: " ")
        guard words.count >= 4, let metadata = DeviceNumber(words[0]),
            let sectors = UInt64(words[2]), 128...2_097_152 ~= sectors, sectors % 128 == 0
        else { return nil }
        self.metadata = metadata
        blockByteCount = sectors * 512
    }
}

/// The status of a pool: `TRANSACTION USED/TOTAL USED/TOTAL HELD_ROOT MODE ...`.
///
/// Metadata blocks stand before data blocks. A pool that has failed has only `Fail` or `Error`.
struct PoolStatus: Hashable, Sendable {
    let usedMetadataBlocks: UInt64
    let metadataBlocks: UInt64
    let usedDataBlocks: UInt64
    let dataBlocks: UInt64
    /// True if there is a metadata snapshot.
    let hasMetadataSnapshot: Bool
    /// `rw`, `ro` or `out_of_data_space`.
    let mode: String
    let needsCheck: Bool

    init?(_ parameters: String) {
        let words = parameters.split(separator: " ")
        func pair(_ word: Substring) -> (UInt64, UInt64)? {
            let parts = word.split(separator: "/")
            guard parts.count == 2, let used = UInt64(parts[0]), let total = UInt64(parts[1]),
                total > 0
            else { return nil }
            return (used, total)
        }
        guard words.count >= 5, let metadata = pair(words[1]), let data = pair(words[2]) else {
            return nil
        }
        (usedMetadataBlocks, metadataBlocks) = metadata
        (usedDataBlocks, dataBlocks) = data
        hasMetadataSnapshot = words[3] != "-"
        mode = String(words[4])
        needsCheck = words[5...].contains("needs_check")
    }

    private static func percent(_ used: UInt64, _ total: UInt64) -> Double {
        Double(used) * 100 / Double(total)
    }

    /// `85.1 %`.
    static func text(_ percent: Double) -> String { "\((percent * 10).rounded() / 10) %" }

    var dataPercent: Double { PoolStatus.percent(usedDataBlocks, dataBlocks) }
    var metadataPercent: Double { PoolStatus.percent(usedMetadataBlocks, metadataBlocks) }
}

/// How full a thin pool is, for a monitor.
public struct ThinPoolFill: Hashable, Sendable {
    /// The pool's device-mapper name.
    public let pool: String
    /// Used data blocks, in percent of all.
    public let dataPercent: Double
    /// Used metadata blocks, in percent of all.
    public let metadataPercent: Double
}
