import GuestModel
import SystemPackage

/// What a hook printed: JSON, at most 64 MiB of it.
struct HookAnswer {
    static let byteLimit = 64 << 20

    /// For messages: the command and what it was asked.
    let asked: String
    let bytes: [UInt8]

    private func refusal(_ what: String) -> GuestError {
        GuestError(
            code: .callFailed,
            message: "\(asked) printed \(what); see HookedDisks for what it must print")
    }

    /// Reads an object with one value that matters; others are allowed.
    private func value(
        of key: String, isRequired: Bool = true, _ take: (inout JSONReader) -> Bool
    ) throws(GuestError) {
        var reader = JSONReader(bytes)
        var wasFound = false
        let isObject = reader.object { reader, found in
            guard found == key else { return reader.skip() }
            wasFound = true
            return take(&reader)
        }
        guard isObject, reader.isAtEnd() else {
            throw refusal("no valid JSON object, or a wrong value of '\(key)'")
        }
        guard wasFound || !isRequired else { throw refusal("an object without '\(key)'") }
    }

    /// `disks`: the disks, each `{"name": TEXT, "bytes": NUMBER, "sector": 512 or 4096}`.
    ///
    /// - Returns: nil if the key is missing and that is allowed.
    func disks(isRequired: Bool = true) throws(GuestError) -> [GuestDisk]? {
        var disks: [GuestDisk]?
        try value(of: "disks", isRequired: isRequired) { reader in
            disks = []
            return reader.array { reader in
                var (name, byteCount, sector): (String?, UInt64?, UInt64) = (nil, nil, 512)
                let isObject = reader.object { reader, key in
                    switch key {
                    case "name":
                        name = reader.string()
                        return name != nil
                    case "bytes":
                        byteCount = reader.unsigned()
                        return byteCount != nil
                    case "sector":
                        sector = reader.unsigned() ?? 0
                        return true
                    default: return reader.skip()
                    }
                }
                guard isObject, let name, let byteCount, sector == 512 || sector == 4096,
                    byteCount % sector == 0, byteCount < 1 << 62,
                    disks?.count ?? 0 < 4096
                else { return false }
                disks?.append(
                    GuestDisk(name: name, byteCount: byteCount, sectorByteCount: Int(sector)))
                return true
            }
        }
        if let disks { try DiskNames.check(disks.map(\.name)) }
        return disks
    }

    /// `path`: an absolute path.
    func path() throws(GuestError) -> FilePath {
        var path = ""
        try value(of: "path") { reader in
            path = reader.string() ?? ""
            return path.hasPrefix("/") && !path.utf8.contains(0)
        }
        return FilePath(path)
    }

    /// `changed`: null, or `{"offset": NUMBER, "length": NUMBER}` in bytes, in any order.
    ///
    /// - Returns: nil for null, or too many of them.
    func changed(_ blockCount: UInt64) throws(GuestError) -> [BlockRange]? {
        var extents: [Range<UInt64>]? = []
        try value(of: "changed") { reader in
            if reader.isNull() {
                extents = nil
                return true
            }
            return reader.array { reader in
                var (offset, length): (UInt64?, UInt64?) = (nil, nil)
                let isObject = reader.object { reader, key in
                    switch key {
                    case "offset":
                        offset = reader.unsigned()
                        return offset != nil
                    case "length":
                        length = reader.unsigned()
                        return length != nil
                    default: return reader.skip()
                    }
                }
                guard isObject, let offset, let length else { return false }
                let (end, isTooLarge) = offset.addingReportingOverflow(length)
                guard !isTooLarge else { return false }
                extents?.append(offset..<end)
                return true
            }
        }
        guard var extents else { return nil }
        extents.sort { $0.lowerBound < $1.lowerBound }
        var ranges = BlockRanges(blockCount: blockCount)
        for extent in extents {
            guard ranges.add(bytes: extent) else { return nil }
        }
        return ranges.ranges
    }

    /// `drain_milliseconds`, which may be missing.
    func drain() throws(GuestError) -> Duration {
        var milliseconds: UInt64 = 0
        try value(of: "drain_milliseconds", isRequired: false) { reader in
            let value = reader.unsigned()
            milliseconds = value ?? 0
            return value.map { $0 < 1 << 40 } ?? false
        }
        return .milliseconds(Int64(milliseconds))
    }
}
