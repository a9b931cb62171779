package import GuestModel

/// Writes a checkpoint as a stream that Xen restores: a file of `xl save`, or the bare libxc stream
/// in version 3.
///
///     var writer = try XenStreamWriter(.xl, state: state) { bytes in ... }
///     try writer.begin()
///     try writer.pages(runs, bytes)      // repeatedly, frames ascending
///     try writer.finish()
///
/// Memory is bounded: 8 bytes for each of 1024 frames. Pages are passed on from the caller's
/// memory. Order of records: xg_sr_save.c, xg_sr_save_x86_pv.c and xg_sr_save_x86_hvm.c of Xen.
package struct XenStreamWriter {
    /// The format to write.
    package enum Format: Sendable {
        /// A file that `xl restore` starts.
        case xl
        /// The bare libxc stream.
        case libxc
    }

    /// Receives bytes in order; valid only during the call.
    package typealias Sink = (UnsafeRawBufferPointer) throws -> Void

    private let format: Format
    private let xen: XenState
    private let configuration: [UInt8]?
    private let isJSON: Bool
    private let sink: Sink
    private var types: PageTypeCursor
    private var head: [UInt8] = []

    /// - Parameters:
    ///   - format: what to write.
    ///   - state: the checkpoint's state, as `XenStreamReader` returned it.
    ///   - configuration: replaces the checkpoint's own: JSON as `xl save` writes it, or an xl.cfg;
    ///     checked (`XenConfigurationText`).
    ///   - sink: takes the bytes.
    package init(
        _ format: Format, state: GuestState, configuration: [UInt8]? = nil, sink: @escaping Sink
    ) throws(XenStreamError) {
        self.format = format
        self.sink = sink
        xen = try XenState(state, for: "written as \(format == .xl ? "xl" : "libxc")")
        types = PageTypeCursor(xen.pageTypes)
        let own = state.bytes(ofKind: XenStateKind.configuration)
        if let configuration {
            let text = try XenConfigurationText(configuration)
            self.configuration = text.bytes + [0]
            isJSON = text.isJSON
        } else {
            self.configuration = own ?? state.bytes(ofKind: XenStateKind.configurationText)
            isJSON = own != nil
        }
        guard format == .xl else { return }
        if self.configuration == nil {
            throw XenStreamError(
                .noState,
                "the checkpoint has no configuration, because it came from a bare stream; give one "
                    + "with --config, or export it as libxc")
        }
        if state.records.contains(where: { $0.kind.hasPrefix(XenStateKind.xenopsdPrefix + "Qemu") })
        {
            throw XenStreamError(
                .noState,
                "the guest's device model state is xenopsd's, which xl cannot read; export the "
                    + "checkpoint as libxc")
        }
    }

    /// Writes everything that comes before the pages.
    package mutating func begin() throws {
        if format == .xl { try beginXl() }
        var bytes = LibxcLayout.marker.bigEndianBytes + LibxcLayout.ident.bigEndianBytes
        bytes += LibxcLayout.version.bigEndianBytes + [UInt8](repeating: 0, count: 8)
        bytes += xen.domainHeader
        for type in [LibxcRecordType.pvInfo, .cpuidPolicy, .msrPolicy] {
            for body in xen.bodies(type) { XenStreamWriter.append(type.rawValue, body, to: &bytes) }
        }
        XenStreamWriter.append(LibxcRecordType.staticDataEnd.rawValue, [], to: &bytes)
        for body in xen.bodies(.pvP2MFrames) {
            XenStreamWriter.append(LibxcRecordType.pvP2MFrames.rawValue, body, to: &bytes)
        }
        try bytes.withUnsafeBytes(sink)
    }

    private func beginXl() throws {
        let text = configuration ?? []
        let flags = XlLayout.streamFlag | (isJSON ? XlLayout.jsonFlag : 0)
        var bytes = XlLayout.magic + XlLayout.byteOrder.littleEndianBytes
        bytes += flags.littleEndianBytes + UInt32(0).littleEndianBytes
        bytes += UInt32(text.count + 4).littleEndianBytes
        bytes += UInt32(text.count).littleEndianBytes + text
        bytes += LibxlLayout.ident.bigEndianBytes + LibxlLayout.version.bigEndianBytes
        bytes += UInt32(0).bigEndianBytes
        XenStreamWriter.append(LibxlRecordType.libxcContext.rawValue, [], to: &bytes)
        try bytes.withUnsafeBytes(sink)
    }

    /// Writes pages.
    ///
    /// - Parameters:
    ///   - runs: frames, ascending, after those of earlier calls.
    ///   - contents: 4096 bytes for each, without gaps.
    package mutating func pages(_ runs: [PageRange], _ contents: UnsafeRawBufferPointer) throws {
        var batch: [UInt64] = []
        batch.reserveCapacity(LibxcLayout.batchPageCount)
        var start = 0
        for run in runs {
            for frame in run.frames {
                batch.append(frame)
                if batch.count == LibxcLayout.batchPageCount {
                    start += try write(batch, contents, from: start)
                    batch.removeAll(keepingCapacity: true)
                }
            }
        }
        if !batch.isEmpty { _ = try write(batch, contents, from: start) }
    }

    /// Writes one PAGE_DATA record.
    ///
    /// - Returns: the number of bytes of `contents` that were used.
    private mutating func write(
        _ frames: [UInt64], _ contents: UnsafeRawBufferPointer, from start: Int
    ) throws -> Int {
        let entryTypes = frames.map { types.type(of: $0) }
        let dataCount = entryTypes.reduce(0) { $0 + ($1.hasData ? 1 : 0) }
        let length = 8 + frames.count * 8 + dataCount * Page.byteCount
        head.removeAll(keepingCapacity: true)
        head += LibxcRecordType.pageData.rawValue.littleEndianBytes
        head += UInt32(length).littleEndianBytes
        head += UInt64(frames.count).littleEndianBytes
        for (frame, type) in zip(frames, entryTypes) {
            head += (frame | UInt64(type.rawValue) << LibxcLayout.typeShift).littleEndianBytes
        }
        try head.withUnsafeBytes(sink)
        // Pages are contiguous; only frames without data make gaps.
        var position = 0
        while position < frames.count {
            guard entryTypes[position].hasData else {
                position += 1
                continue
            }
            let first = position
            while position < frames.count, entryTypes[position].hasData { position += 1 }
            let bytes = contents[
                start + first * Page.byteCount..<start + position * Page.byteCount]
            try sink(UnsafeRawBufferPointer(rebasing: bytes))
        }
        return frames.count * Page.byteCount
    }

    /// Writes everything that comes after the pages.
    package mutating func finish() throws {
        try writeBroken()
        var bytes: [UInt8] = []
        let before: [LibxcRecordType] = [.pvInfo, .cpuidPolicy, .msrPolicy, .pvP2MFrames]
        for record in xen.libxc where !before.contains(record.type) {
            XenStreamWriter.append(record.type.rawValue, record.body, to: &bytes)
        }
        XenStreamWriter.append(LibxcRecordType.end.rawValue, [], to: &bytes)
        if format == .xl {
            for record in xen.libxl {
                XenStreamWriter.append(record.type.rawValue, record.body, to: &bytes)
            }
            XenStreamWriter.append(LibxlRecordType.end.rawValue, [], to: &bytes)
        }
        try bytes.withUnsafeBytes(sink)
    }

    /// Frames that the hypervisor found broken are in no layout, but the stream names them.
    private mutating func writeBroken() throws {
        let broken = xen.pageTypes.runs.filter { $0.type == .broken }.flatMap {
            ($0.first..<$0.first + UInt64($0.count))
        }
        for start in stride(from: 0, to: broken.count, by: LibxcLayout.batchPageCount) {
            let end = min(broken.count, start + LibxcLayout.batchPageCount)
            let empty = UnsafeRawBufferPointer(start: nil, count: 0)
            types = PageTypeCursor(xen.pageTypes)
            _ = try write(Array(broken[start..<end]), empty, from: 0)
        }
    }

    private static func append(_ type: UInt32, _ body: [UInt8], to bytes: inout [UInt8]) {
        bytes += type.littleEndianBytes + UInt32(body.count).littleEndianBytes + body
        bytes += [UInt8](repeating: 0, count: body.count.paddedTo8 - body.count)
    }
}

/// Looks up the types of ascending frames, one after another.
struct PageTypeCursor {
    private let runs: [PageTypeRuns.Run]
    private var next = 0

    init(_ types: PageTypeRuns) { runs = types.runs }

    mutating func type(of frame: UInt64) -> XenPageType {
        while next < runs.count, runs[next].first + UInt64(runs[next].count) <= frame { next += 1 }
        guard next < runs.count, runs[next].first <= frame else { return .normal }
        return runs[next].type
    }
}
