/// A record's header, and its position.
struct Record {
    let type: LibxcRecordType
    /// Bytes of the body, without padding.
    let length: UInt32
    /// Offset of the header in the stream.
    let start: UInt64

    func malformed(_ reason: String) -> XenStreamError {
        XenStreamError(.malformed, at: start, in: type.name, reason)
    }

    func unsupported(_ reason: String) -> XenStreamError {
        XenStreamError(.unsupported, at: start, in: type.name, reason)
    }

    func expectEmpty() throws(XenStreamError) {
        guard length == 0 else { throw malformed("it has \(length) bytes but must have none") }
    }
}

/// Requirements for the bodies of libxc records: those of Xen's verify-stream-v2, and the order
/// rules of its receiver (xg_sr_restore_x86_pv.c, xg_sr_common_x86.c).
enum LibxcRecords {
    /// True for the records, other than pages and ends, that a guest's stream may have.
    static func isKnown(_ type: LibxcRecordType, in kind: XenGuestKind) -> Bool {
        switch type {
        case .tscInfo, .verify, .staticDataEnd, .cpuidPolicy, .msrPolicy: true
        case .pvInfo, .pvP2MFrames, .vcpuBasic, .vcpuExtended, .vcpuXsave, .vcpuMSRs, .sharedInfo:
            kind == .pv
        case .hvmContext, .hvmParams: kind == .hvm
        default: false
        }
    }

    /// True for records that Xen 4.6 to 4.8 sends without content; they have no meaning.
    static func isEmptyErratum(_ type: LibxcRecordType, _ body: [UInt8]) -> Bool {
        switch type {
        case .hvmParams, .vcpuExtended, .vcpuXsave, .vcpuMSRs: body.count == 8
        default: false
        }
    }

    /// The position of a body's reserved field, within the length that `check` requires.
    ///
    /// The specification requires savers to set reserved fields to zero, and restorers to ignore
    /// them.
    static func reserved(_ type: LibxcRecordType) -> Range<Int>? {
        switch type {
        case .tscInfo: 20..<24
        case .pvInfo: 2..<8
        case .vcpuBasic, .vcpuExtended, .vcpuXsave, .vcpuMSRs, .hvmParams: 4..<8
        default: nil
        }
    }

    /// Checks a body.
    static func check(
        _ record: Record, _ body: [UInt8], version: UInt32, _ state: StateBuilder
    ) throws(XenStreamError) {
        switch record.type {
        case .staticDataEnd:
            try record.expectEmpty()
            try expectVersion3(record, version)
        case .verify: try record.expectEmpty()
        case .cpuidPolicy:
            try expectVersion3(record, version)
            try expectEntries(record, of: 24)
        case .msrPolicy:
            try expectVersion3(record, version)
            try expectEntries(record, of: 16)
        case .tscInfo: try expectLength(record, 24)
        case .sharedInfo: try expectLength(record, 4096)
        case .pvInfo: try checkPVInfo(record, body, state)
        case .pvP2MFrames: try checkP2MFrames(record, body, state)
        case .vcpuBasic, .vcpuExtended, .vcpuXsave, .vcpuMSRs: try checkVCPU(record)
        case .hvmContext:
            guard record.length > 0 else { throw record.malformed("it is empty") }
        case .hvmParams: try checkParams(record, body)
        default: preconditionFailure("every record that is known is checked")
        }
    }

    private static func expectVersion3(
        _ record: Record, _ version: UInt32
    ) throws(XenStreamError) {
        guard version >= 3 else { throw record.malformed("a stream of version 2 has none") }
    }

    private static func expectLength(
        _ record: Record, _ length: UInt32
    ) throws(XenStreamError) {
        guard record.length == length else {
            throw record.malformed("its length is \(record.length), not \(length)")
        }
    }

    private static func expectEntries(
        _ record: Record, of length: UInt32
    ) throws(XenStreamError) {
        guard record.length > 0, record.length % length == 0 else {
            throw record.malformed("its length is \(record.length), not a multiple of \(length)")
        }
    }

    private static func checkPVInfo(
        _ record: Record, _ body: [UInt8], _ state: StateBuilder
    ) throws(XenStreamError) {
        try expectLength(record, 8)
        guard !state.has(.pvInfo) else { throw record.malformed("it occurs twice") }
        guard body[0] == 4 || body[0] == 8 else {
            throw record.malformed("the guest's width is \(body[0]), not 4 or 8")
        }
        guard body[1] == 3 || body[1] == 4 else {
            throw record.malformed("it has \(body[1]) levels of page tables, not 3 or 4")
        }
    }

    /// One p2m frame holds this many entries of the guest's width.
    private static func checkP2MFrames(
        _ record: Record, _ body: [UInt8], _ state: StateBuilder
    ) throws(XenStreamError) {
        guard let info = state.bytes(of: .pvInfo) else {
            throw record.malformed("there was no X86_PV_INFO record before it")
        }
        guard !state.has(.pvP2MFrames) else { throw record.malformed("it occurs twice") }
        guard record.length >= 8 else { throw record.malformed("it is shorter than its header") }
        let (start, end): (UInt32, UInt32) = (body.little(0), body.little(4))
        guard start <= end else { throw record.malformed("it ends before it starts") }
        let entries = 4096 / UInt32(info[0])
        let count = UInt64(end / entries - start / entries + 1)
        guard UInt64(record.length) == 8 + count * 8 else {
            throw record.malformed(
                "its length is \(record.length), but frames \(start) to \(end) need "
                    + "\(8 + count * 8)")
        }
    }

    private static func checkVCPU(_ record: Record) throws(XenStreamError) {
        guard record.length >= 8 else { throw record.malformed("it is shorter than its header") }
        let length = record.length - 8
        switch record.type {
        case .vcpuBasic where length != 5168 && length != 2800:
            throw record.malformed("its context has \(length) bytes, not 5168 or 2800")
        case .vcpuExtended where length > 128:
            throw record.malformed("its context has \(length) bytes, more than 128")
        case .vcpuXsave where length != 0 && length < 16:
            throw record.malformed("its context has \(length) bytes, fewer than 16")
        case .vcpuMSRs where length % 16 != 0:
            throw record.malformed("its context has \(length) bytes, not a multiple of 16")
        default: return
        }
    }

    private static func checkParams(_ record: Record, _ body: [UInt8]) throws(XenStreamError) {
        guard record.length >= 8 else { throw record.malformed("it is shorter than its header") }
        let count: UInt32 = body.little(0)
        guard UInt64(record.length) == 8 + UInt64(count) * 16 else {
            throw record.malformed("\(count) parameters do not make \(record.length) bytes")
        }
    }
}
