import GuestModel
import Testing
import VarveTestSupport
import XenStream

/// The core format, read back as documented.
@Suite struct ElfCoreTests {
    private struct Core {
        let bytes: [UInt8]
        var sections: [String: Range<Int>] = [:]

        init(_ bytes: [UInt8]) {
            self.bytes = bytes
            let (table, count) = (Int(u64(40)), Int(u16(60)))
            let names = Int(u64(table + Int(u16(62)) * 64 + 24))
            for index in 1..<count {
                let header = table + index * 64
                let start = names + Int(u32(header))
                let name = String(decoding: bytes[start...].prefix { $0 != 0 }, as: UTF8.self)
                let offset = Int(u64(header + 24))
                sections[name] = offset..<offset + Int(u64(header + 32))
            }
        }

        static func words(_ bytes: [UInt8]) -> [UInt64] {
            stride(from: 0, to: bytes.count - 7, by: 8).map { start in
                (0..<8).reduce(0) { $0 | UInt64(bytes[start + $1]) << UInt64($1 * 8) }
            }
        }

        func u16(_ at: Int) -> UInt16 { UInt16(bytes[at]) | UInt16(bytes[at + 1]) << 8 }
        func u32(_ at: Int) -> UInt32 { UInt32(u16(at)) | UInt32(u16(at + 2)) << 16 }
        func u64(_ at: Int) -> UInt64 { UInt64(u32(at)) | UInt64(u32(at + 4)) << 32 }
    }

    private func core(_ epoch: Collector.Epoch) throws -> Core {
        let frames = epoch.pages.keys.sorted()
        let layout = GuestLayout(
            runs: frames.map { PageRange(first: PageFrameNumber($0), count: 1) })
        var output: [UInt8] = []
        var writer = try ElfCoreWriter(state: epoch.state, layout: layout) {
            output.append(contentsOf: $0)
        }
        try writer.begin()
        for frame in frames { output += epoch.pages[frame] ?? [] }
        return Core(output)
    }

    @Test(arguments: [true, false])
    func everyPageIsWhereItsFrameSays(_ isPV: Bool) throws {
        var random = TestSeed.generator(730)
        let maker = StreamMaker.guest(
            isPV: isPV, wrapper: .libxc, epochCount: 0, pageCount: 60, &random)
        let epoch = try read(maker.bytes, as: .libxc).0.epochs[0]
        let core = try core(epoch)
        #expect(Array(core.bytes[..<8]) == [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0])
        #expect(core.u16(16) == 4 && core.u16(18) == 62)
        let frames = try #require(core.sections[isPV ? ".xen_p2m" : ".xen_pfn"])
        let pages = try #require(core.sections[".xen_pages"])
        #expect(pages.lowerBound % 4096 == 0 && pages.upperBound == core.bytes.count)
        let entry = isPV ? 16 : 8
        #expect(frames.count == epoch.pages.count * entry)
        for index in 0..<epoch.pages.count {
            let frame = core.u64(frames.lowerBound + index * entry)
            if isPV { #expect(core.u64(frames.lowerBound + index * entry + 8) == frame) }
            let start = pages.lowerBound + index * 4096
            #expect(epoch.pages[frame] == Array(core.bytes[start..<start + 4096]))
        }
        let note = try #require(core.sections[".note.Xen"]).lowerBound
        // The first note has no descriptor; the header's follows it.
        #expect(core.u32(note + 8) == 0x200_0000)
        #expect(core.u32(note + 16 + 8) == 0x200_0001)
        #expect(core.u64(note + 32) == (isPV ? 0xf00f_ebed : 0xf00f_ebee))
        #expect(core.u64(note + 40) == (isPV ? 2 : 1))
        #expect(core.u64(note + 48) == UInt64(epoch.pages.count))
        let contexts = try #require(core.sections[".xen_prstatus"])
        #expect(contexts.count == 5168 * (isPV ? 2 : 1))
        if isPV {
            let basic = try #require(epoch.state.bytes(ofKind: "libxc.X86_PV_VCPU_BASIC"))
            #expect(Array(core.bytes[contexts].prefix(5168)) == Array(basic.dropFirst(8)))
            #expect(
                core.sections[".xen_shared_info"].map { Array(core.bytes[$0]) }
                    == epoch.state.bytes(ofKind: "libxc.SHARED_INFO"))
        }
    }

    /// `struct hvm_hw_cpu` and `struct vcpu_guest_context`, field by field.
    @Test func registersOfAnHVMGuestAreWhereReadersLook() throws {
        var random = TestSeed.generator(731)
        let maker = StreamMaker.guest(
            isPV: false, wrapper: .libxc, epochCount: 0, pageCount: 30, &random)
        let epoch = try read(maker.bytes, as: .libxc).0.epochs[0]
        let context = try #require(epoch.state.bytes(ofKind: "libxc.HVM_CONTEXT"))
        // HEADER: 8 + 24 bytes, then CPU's descriptor.
        let cpu = Core.words(Array(context[40...]))
        let core = try core(epoch)
        let base = try #require(core.sections[".xen_prstatus"]).lowerBound
        let fields: [(String, Int, Int)] = [
            ("rax", 512, 520 + 80), ("rbx", 520, 520 + 40), ("rcx", 528, 520 + 88),
            ("rdx", 536, 520 + 96), ("rbp", 544, 520 + 32), ("rsi", 552, 520 + 104),
            ("rdi", 560, 520 + 112), ("rsp", 568, 520 + 152), ("r8", 576, 520 + 72),
            ("r9", 584, 520 + 64), ("r10", 592, 520 + 56), ("r11", 600, 520 + 48),
            ("r12", 608, 520 + 24), ("r13", 616, 520 + 16), ("r14", 624, 520 + 8),
            ("r15", 632, 520), ("rip", 640, 520 + 128), ("rflags", 648, 520 + 144),
            ("cr0", 656, 4984), ("cr2", 664, 4984 + 16), ("cr3", 672, 4984 + 24),
            ("cr4", 680, 4984 + 32), ("dr0", 688, 5048), ("dr3", 712, 5048 + 24),
            ("dr6", 720, 5048 + 48), ("dr7", 728, 5048 + 56), ("fs base", 832, 5144),
        ]
        for (name, from, to) in fields {
            #expect(core.u64(base + to) == cpu[from / 8], "\(name)")
        }
        #expect(core.u16(base + 520 + 136) == UInt16(truncatingIfNeeded: cpu[736 / 8]), "cs")
        #expect(
            core.u16(base + 520 + 160) == UInt16(truncatingIfNeeded: cpu[752 / 8] >> 32), "ss")
        let isKernel = cpu[752 / 8] >> 32 & 3 == 0
        #expect(core.u64(base + (isKernel ? 5152 : 5160)) == cpu[840 / 8], "gs base")
        #expect(core.u64(base + (isKernel ? 5160 : 5152)) == cpu[944 / 8], "the other gs base")
    }
}
