package import GuestModel

// The core format of `xl dump-core` (docs/misc/dump-core-format.txt), in file order:
//
//   ELF header, section headers
//   .shstrtab
//   .note.Xen            NONE, HEADER, XEN_VERSION, FORMAT_VERSION
//   .xen_prstatus        struct vcpu_guest_context for each virtual processor
//   .xen_shared_info     PV only
//   .xen_p2m / .xen_pfn  PV: u64 pfn, u64 gmfn; otherwise u64 pfn; ascending
//   .xen_pages           at a multiple of 4096
//
// There are no program headers: readers go by section.

/// Writes a checkpoint as an ELF core like those of `xl dump-core`.
///
/// For crash, gdb's Xen readers and Volatility. In a stream the page tables of a PV guest have
/// frame numbers in place of machine frames, so the p2m of such a core is the identity.
package struct ElfCoreWriter {
    private struct Section {
        let name: String
        let type: UInt32
        var bytes: [UInt8]
        let alignment: UInt64
        let entryByteCount: UInt64
    }

    private static let headerByteCount = 64
    private static let sectionHeaderByteCount = 64
    private static let stringTable: UInt32 = 3
    private static let note: UInt32 = 7
    private static let programBits: UInt32 = 1

    private let sink: XenStreamWriter.Sink
    private let layout: GuestLayout
    private let isPV: Bool
    private var sections: [Section] = []

    /// - Parameters:
    ///   - state: the checkpoint's state, as `XenStreamReader` returned it.
    ///   - layout: its frames.
    ///   - sink: takes the bytes.
    package init(
        state: GuestState, layout: GuestLayout, sink: @escaping XenStreamWriter.Sink
    ) throws(XenStreamError) {
        self.sink = sink
        self.layout = layout
        let xen = try XenState(state, for: "written as elf")
        isPV = xen.kind == .pv
        let contexts: [[UInt8]] =
            switch xen.kind {
            case .pv: xen.bodies(.vcpuBasic).map { Array($0.dropFirst(8)) }
            case .hvm:
                (xen.bodies(.hvmContext).last.map { HVMContext.cpus($0) } ?? []).map {
                    HVMContext.guestContext($0)
                }
            }
        guard let context = contexts.first, contexts.allSatisfy({ $0.count == context.count })
        else {
            throw XenStreamError(
                .noState, "the checkpoint's virtual processors cannot be read from its state")
        }
        add(
            ".note.Xen", ElfCoreWriter.note,
            ElfCoreWriter.notes(xen, vcpuCount: contexts.count, pageCount: layout.pageCount))
        add(
            ".xen_prstatus", ElfCoreWriter.programBits, Array(contexts.joined()), alignment: 8,
            entryByteCount: UInt64(context.count))
        if let info = xen.bodies(.sharedInfo).last {
            add(
                ".xen_shared_info", ElfCoreWriter.programBits, info, alignment: 8,
                entryByteCount: UInt64(info.count))
        }
    }

    private mutating func add(
        _ name: String, _ type: UInt32, _ bytes: [UInt8], alignment: UInt64 = 1,
        entryByteCount: UInt64 = 0
    ) {
        sections.append(
            Section(
                name: name, type: type, bytes: bytes, alignment: alignment,
                entryByteCount: entryByteCount))
    }

    // MARK: - Notes

    private static func notes(_ xen: XenState, vcpuCount: Int, pageCount: Int) -> [UInt8] {
        // XC_CORE_MAGIC and XC_CORE_MAGIC_HVM of xenctrl.h.
        let magic: UInt64 = xen.kind == .pv ? 0xf00f_ebed : 0xf00f_ebee
        let header =
            magic.littleEndianBytes + UInt64(vcpuCount).littleEndianBytes
            + UInt64(pageCount).littleEndianBytes + UInt64(Page.byteCount).littleEndianBytes
        var version = UInt64(xen.domainHeader.little(8, as: UInt32.self)).littleEndianBytes
        version += UInt64(xen.domainHeader.little(12, as: UInt32.self)).littleEndianBytes
        // Extra version, compile information, capabilities and changeset: a stream has none of
        // them.
        version += [UInt8](repeating: 0, count: 16 + 144 + 1024 + 64)
        // HYPERVISOR_VIRT_START of x86-64 (public/arch-x86/xen-x86_64.h).
        version += UInt64(0xffff_8000_0000_0000).littleEndianBytes
        version += UInt64(Page.byteCount).littleEndianBytes
        return note(0x200_0000, []) + note(0x200_0001, header) + note(0x200_0002, version)
            + note(0x200_0003, UInt64(1).littleEndianBytes)
    }

    private static func note(_ type: UInt32, _ descriptor: [UInt8]) -> [UInt8] {
        UInt32(4).littleEndianBytes + UInt32(descriptor.count).littleEndianBytes
            + type.littleEndianBytes + Array("Xen".utf8) + [0] + descriptor
    }

    // MARK: - Writing

    /// Writes everything that comes before the pages.
    ///
    /// All pages of the layout must follow, frames ascending, and nothing else.
    package mutating func begin() throws {
        let frameSection = isPV ? ".xen_p2m" : ".xen_pfn"
        let entryByteCount = isPV ? 16 : 8
        let all = [".shstrtab"] + sections.map(\.name) + [frameSection, ".xen_pages"]
        var names: [UInt8] = [0]
        var nameOffsets: [UInt32] = []
        for name in all {
            nameOffsets.append(UInt32(names.count))
            names += Array(name.utf8) + [0]
        }
        sections.insert(
            Section(
                name: ".shstrtab", type: ElfCoreWriter.stringTable, bytes: names, alignment: 1,
                entryByteCount: 0), at: 0)
        let headers = ElfCoreWriter.sectionHeaderByteCount * (all.count + 1)
        var offset = ElfCoreWriter.headerByteCount + headers
        var table = [UInt8](repeating: 0, count: ElfCoreWriter.sectionHeaderByteCount)
        var bodies: [UInt8] = []
        for (section, name) in zip(sections, nameOffsets) {
            let padding = (8 - offset % 8) % 8
            bodies += [UInt8](repeating: 0, count: padding) + section.bytes
            offset += padding
            table += ElfCoreWriter.sectionHeader(
                name, section.type, at: offset, count: section.bytes.count, section.alignment,
                section.entryByteCount)
            offset += section.bytes.count
        }
        let padding = (8 - offset % 8) % 8
        bodies += [UInt8](repeating: 0, count: padding)
        offset += padding
        let frameBytes = layout.pageCount * entryByteCount
        table += ElfCoreWriter.sectionHeader(
            nameOffsets[all.count - 2], ElfCoreWriter.programBits, at: offset, count: frameBytes, 8,
            UInt64(entryByteCount))
        let pages = (offset + frameBytes + Page.byteCount - 1) / Page.byteCount * Page.byteCount
        table += ElfCoreWriter.sectionHeader(
            nameOffsets[all.count - 1], ElfCoreWriter.programBits, at: pages,
            count: layout.byteCount, UInt64(Page.byteCount), UInt64(Page.byteCount))
        try (ElfCoreWriter.header(sectionCount: all.count + 1) + table + bodies)
            .withUnsafeBytes(sink)
        try writeFrames()
        let gap = [UInt8](repeating: 0, count: pages - offset - frameBytes)
        try gap.withUnsafeBytes(sink)
    }

    private func writeFrames() throws {
        var bytes: [UInt8] = []
        for run in layout.runs {
            for frame in run.frames {
                bytes += frame.littleEndianBytes
                if isPV { bytes += frame.littleEndianBytes }
                if bytes.count >= 1 << 16 {
                    try bytes.withUnsafeBytes(sink)
                    bytes.removeAll(keepingCapacity: true)
                }
            }
        }
        try bytes.withUnsafeBytes(sink)
    }

    private static func header(sectionCount: Int) -> [UInt8] {
        // ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ELFOSABI_SYSV; ET_CORE, EM_X86_64.
        var bytes: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        bytes += UInt16(4).littleEndianBytes + UInt16(62).littleEndianBytes
        bytes += UInt32(1).littleEndianBytes
        // No entry; section headers follow immediately; program headers of 56 bytes, none of them.
        bytes += UInt64(0).littleEndianBytes + UInt64(0).littleEndianBytes
        bytes += UInt64(headerByteCount).littleEndianBytes + UInt32(0).littleEndianBytes
        for field in [headerByteCount, 56, 0, sectionHeaderByteCount, sectionCount, 1] {
            bytes += UInt16(field).littleEndianBytes
        }
        return bytes
    }

    private static func sectionHeader(
        _ name: UInt32, _ type: UInt32, at offset: Int, count: Int, _ alignment: UInt64,
        _ entryByteCount: UInt64
    ) -> [UInt8] {
        var bytes = name.littleEndianBytes + type.littleEndianBytes
        bytes += UInt64(0).littleEndianBytes + UInt64(0).littleEndianBytes
        bytes += UInt64(offset).littleEndianBytes + UInt64(count).littleEndianBytes
        bytes += UInt32(0).littleEndianBytes + UInt32(0).littleEndianBytes
        return bytes + alignment.littleEndianBytes + entryByteCount.littleEndianBytes
    }
}
