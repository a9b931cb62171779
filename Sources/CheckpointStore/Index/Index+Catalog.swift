package import CheckpointFormat
import GuestModel

extension Index {
    /// Where a checkpoint's manifest lies; nil if there is none of that id.
    package func manifestLocation(_ id: CheckpointID) throws -> RecordLocation? {
        try environment.read { transaction in
            try withUnsafeBytes(of: id.digest.words) { key in
                try transaction.get(table(.checkpoints), key) { RecordLocation($0) }
            }
        }
    }

    /// Ids and manifests' places of all checkpoints, in the order of publication.
    package func catalog() throws -> [(id: CheckpointID, location: RecordLocation)] {
        try environment.read { transaction in
            var ids: [CheckpointID] = []
            try transaction.scan(table(.order), from: []) { _, value in
                ids.append(CheckpointID(PageDigest(bytes: value)))
                return true
            }
            return try ids.map { id in
                let location = try withUnsafeBytes(of: id.digest.words) { key in
                    try transaction.get(table(.checkpoints), key) { RecordLocation($0) }
                }
                guard let location else {
                    throw LMDBError(call: "catalog", code: LMDBError.damaged)
                }
                return (id, location)
            }
        }
    }

    /// The newest checkpoint of a lineage.
    package func newest(lineage: String) throws -> CheckpointID? {
        try id(named: lineage, in: .lineages)
    }

    /// The checkpoint with a label; the newest if several were given it.
    package func labelled(_ label: String) throws -> CheckpointID? {
        try id(named: label, in: .labels)
    }

    private func id(named name: String, in names: Table) throws -> CheckpointID? {
        try environment.read { transaction in
            try Index.withKey(name) { (key) throws(LMDBError) in
                try transaction.get(table(names), key) { CheckpointID(PageDigest(bytes: $0)) }
            }
        }
    }

    /// The names of all lineages with their newest checkpoints, in byte order.
    package func lineages() throws -> [(name: String, newest: CheckpointID)] {
        try environment.read { transaction in
            var result: [(name: String, newest: CheckpointID)] = []
            try transaction.scan(table(.lineages), from: []) { key, value in
                result.append(
                    (String(decoding: key, as: UTF8.self), CheckpointID(PageDigest(bytes: value))))
                return true
            }
            return result
        }
    }

    /// Ids that begin with hexadecimal digits; stops at `limit`.
    package func ids(prefix: String, limit: Int) throws -> [CheckpointID] {
        let digits = prefix.compactMap { $0.hexDigitValue }
        guard digits.count == prefix.utf8.count, !digits.isEmpty, digits.count <= 64 else {
            return []
        }
        let even = digits.count % 2 == 0 ? digits : digits + [0]
        let start = stride(from: 0, to: even.count, by: 2).map {
            UInt8(even[$0] * 16 + even[$0 + 1])
        }
        let wanted = prefix.lowercased()
        return try environment.read { transaction in
            var result: [CheckpointID] = []
            try transaction.scan(table(.checkpoints), from: start) { key, _ in
                let id = CheckpointID(PageDigest(bytes: key))
                guard id.description.hasPrefix(wanted) else { return false }
                result.append(id)
                return result.count < limit
            }
            return result
        }
    }

    /// Adds one published checkpoint to the catalog, inside a write transaction.
    func addToCatalog(
        _ transaction: borrowing LMDBTransaction, _ id: CheckpointID, _ manifest: Manifest,
        at location: RecordLocation
    ) throws {
        let known = try withUnsafeBytes(of: id.digest.words) { key in
            try transaction.get(table(.checkpoints), key) { _ in true }
        }
        if known == true { return }
        let order = UInt64(try transaction.count(table(.order)))
        var value = ByteWriter()
        value.write(location.pack)
        value.write(location.offset)
        value.write(order)
        try value.bytes.withUnsafeBytes { bytes in
            try withUnsafeBytes(of: id.digest.words) { key in
                try transaction.put(table(.checkpoints), key, bytes)
            }
        }
        try withUnsafeBytes(of: id.digest.words) { digest in
            try withUnsafeBytes(of: order.bigEndian) { key in
                try transaction.put(table(.order), key, digest)
            }
            try Index.withKey(manifest.lineage) { (key) throws(LMDBError) in
                try transaction.put(table(.lineages), key, digest)
            }
            if !manifest.label.isEmpty {
                try Index.withKey(manifest.label) { (key) throws(LMDBError) in
                    try transaction.put(table(.labels), key, digest)
                }
            }
        }
    }
}

extension RecordLocation {
    fileprivate init(_ bytes: UnsafeRawBufferPointer) {
        self.init(
            pack: UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self)),
            offset: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self)))
    }
}
