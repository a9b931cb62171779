import GuestModel

// What a stream has of a guest other than its pages becomes the checkpoint's state: one record for
// each record of the stream, with the same bytes. A later record of a stream replaces the earlier
// one of its type (and virtual processor, or emulator), as in Xen's receiver.
//
//   xl.configuration            JSON, as `xl save` wrote it, with its NUL
//   xl.configuration.text       the older form: an xl.cfg
//   libxc.domain-header         the 16 bytes of the domain header
//   libxc.NAME                  the body of a libxc record
//   libxc.page-types            runs of frames that are not ordinary pages, ascending, each
//                               u64 first frame, u32 count, u32 type
//   libxl.NAME                  the body of a libxl record
//   xenopsd.NAME                the body of a xenopsd record

/// The kinds of a Xen guest's state records.
public enum XenStateKind {
    /// The guest's configuration as JSON.
    public static let configuration = "xl.configuration"
    /// The guest's configuration as an xl.cfg.
    public static let configurationText = "xl.configuration.text"
    /// The domain header of the libxc stream.
    public static let domainHeader = "libxc.domain-header"
    /// Which frames are page tables, or have no content.
    public static let pageTypes = "libxc.page-types"

    static let libxcPrefix = "libxc."
    static let libxlPrefix = "libxl."
    static let xenopsdPrefix = "xenopsd."

    static func libxc(_ type: LibxcRecordType) -> String { libxcPrefix + type.name }
    static func libxl(_ type: LibxlRecordType) -> String { libxlPrefix + type.name }
}

/// Collects a guest's state while its stream is read.
struct StateBuilder {
    /// A guest's state is a few megabytes; more is rejected.
    static let byteCountMax = 256 << 20

    private struct Key: Hashable {
        let kind: String
        /// The virtual processor or emulator that it belongs to.
        let instance: UInt64
    }

    private var order: [Key: Int] = [:]
    private var records: [GuestState.Record] = []
    private var byteCount = 0
    private var pageTypes: [UInt64: XenPageType] = [:]

    /// Adds a record, or replaces the one with the same kind and instance.
    ///
    /// - Returns: false if there would be more state than a guest can have; nothing was added then.
    mutating func set(_ kind: String, instance: UInt64 = 0, _ bytes: [UInt8]) -> Bool {
        let key = Key(kind: kind, instance: instance)
        let old = order[key].map { records[$0].bytes.count } ?? 0
        // Each record costs some bytes in addition to its own.
        let count = byteCount - old + bytes.count + (order[key] == nil ? 64 : 0)
        guard count <= StateBuilder.byteCountMax else { return false }
        byteCount = count
        if let position = order[key] {
            records[position].bytes = bytes
        } else {
            order[key] = records.count
            records.append(GuestState.Record(kind: kind, bytes: bytes))
        }
        return true
    }

    /// The body of the first added record of a type.
    func bytes(of type: LibxcRecordType) -> [UInt8]? {
        let kind = XenStateKind.libxc(type)
        return records.first { $0.kind == kind }?.bytes
    }

    /// True if a record of the type was added.
    func has(_ type: LibxcRecordType) -> Bool { bytes(of: type) != nil }

    /// Records the type of a frame.
    mutating func setType(_ type: XenPageType, of frame: UInt64) {
        if type == .normal || type == .invalid {
            if !pageTypes.isEmpty { pageTypes.removeValue(forKey: frame) }
        } else {
            pageTypes[frame] = type
        }
    }

    /// The current state.
    var state: GuestState {
        guard !pageTypes.isEmpty else { return GuestState(records: records) }
        let types = GuestState.Record(
            kind: XenStateKind.pageTypes, bytes: PageTypeRuns(pageTypes).encoded)
        return GuestState(records: records + [types])
    }
}

/// Which frames are not ordinary pages, as ascending runs of one type.
struct PageTypeRuns {
    struct Run: Equatable {
        var first: UInt64
        var count: UInt32
        var type: XenPageType
    }

    private static let runByteCount = 16
    private(set) var runs: [Run] = []

    init(_ types: [UInt64: XenPageType]) {
        for frame in types.keys.sorted() {
            guard let type = types[frame] else { continue }
            if let last = runs.last, last.type == type, last.first + UInt64(last.count) == frame,
                last.count < .max
            {
                runs[runs.count - 1].count += 1
            } else {
                runs.append(Run(first: frame, count: 1, type: type))
            }
        }
    }

    /// Reads the bytes of `encoded`; nil if they are anything else.
    init?(_ bytes: [UInt8]) {
        guard bytes.count % PageTypeRuns.runByteCount == 0 else { return nil }
        var end: UInt64 = 0
        for offset in stride(from: 0, to: bytes.count, by: PageTypeRuns.runByteCount) {
            let run = Run(
                first: bytes.little(offset), count: bytes.little(offset + 8),
                type: XenPageType(
                    rawValue: UInt8(truncatingIfNeeded: bytes.little(offset + 12, as: UInt32.self)))
            )
            guard run.first >= end, run.first < LibxcLayout.frameMask, run.count > 0,
                run.type.rawValue < 16, run.type.isKnown
            else { return nil }
            end = run.first + UInt64(run.count)
            runs.append(run)
        }
    }

    var encoded: [UInt8] {
        runs.flatMap { run in
            run.first.littleEndianBytes + run.count.littleEndianBytes
                + UInt32(run.type.rawValue).littleEndianBytes
        }
    }
}
