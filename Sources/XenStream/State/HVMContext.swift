// The HVM context: {u16 typecode, u16 instance, u32 length, body}*, from HEADER (1) to END (0)
// (xen/include/public/hvm/save.h, arch-x86/hvm/save.h).

/// Reads a guest's HVM context.
enum HVMContext {
    private static let cpuTypecode: UInt16 = 2
    /// `struct hvm_hw_cpu` before Xen 4.7 ends with the error code; all fields read here precede
    /// it.
    private static let cpuByteCountMin = 1024

    /// The processors' records, ascending; none if the bytes have another layout.
    static func cpus(_ context: [UInt8]) -> [[UInt8]] {
        var result: [[UInt8]] = []
        var offset = 0
        while offset + 8 <= context.count {
            let typecode: UInt16 = context.little(offset)
            let length = Int(context.little(offset + 4, as: UInt32.self))
            offset += 8
            guard length <= context.count - offset else { return [] }
            if typecode == cpuTypecode, length >= cpuByteCountMin {
                result.append(Array(context[offset..<offset + length]))
            }
            offset += length
        }
        return result
    }

    // Words of `struct hvm_hw_cpu` -> words of `struct vcpu_guest_context`.
    private static let words: [(from: Int, to: Int)] = [
        (632, 520), (624, 528), (616, 536), (608, 544), (544, 552), (520, 560), (600, 568),
        (592, 576), (584, 584), (576, 592), (512, 600), (528, 608), (536, 616), (552, 624),
        (560, 632),
        // rip, rflags, rsp
        (640, 648), (648, 664), (568, 672),
        // cr0, cr2, cr3, cr4
        (656, 4984), (664, 5000), (672, 5008), (680, 5016),
        // dr0 to dr3, dr6, dr7
        (688, 5048), (696, 5056), (704, 5064), (712, 5072), (720, 5096), (728, 5104),
        // fs base
        (832, 5144),
    ]
    // Selectors: cs, ss, es, ds, fs, gs.
    private static let selectors: [(from: Int, to: Int)] = [
        (736, 656), (756, 680), (744, 688), (740, 696), (748, 704), (752, 712),
    ]
    private static let gsBase = 840
    private static let shadowGS = 944
    private static let gsBaseKernel = 5152
    private static let gsBaseUser = 5160
    /// Bytes of `struct vcpu_guest_context` for x86-64 (public/arch-x86/xen.h).
    static let guestContextByteCount = 5168

    /// A processor as `XEN_DOMCTL_getvcpucontext` shows it.
    static func guestContext(_ cpu: [UInt8]) -> [UInt8] {
        var context = [UInt8](repeating: 0, count: guestContextByteCount)
        func put(_ value: UInt64, at offset: Int) {
            context.replaceSubrange(offset..<offset + 8, with: value.littleEndianBytes)
        }
        context.replaceSubrange(0..<512, with: cpu[0..<512])
        // VGCF_i387_valid and VGCF_online: a processor that is offline is not in the context.
        put(1 | 1 << 5, at: 512)
        for word in words { put(cpu.little(word.from), at: word.to) }
        for selector in selectors {
            put(UInt64(cpu.little(selector.from, as: UInt16.self)), at: selector.to)
        }
        let isKernel = cpu.little(756, as: UInt32.self) & 3 == 0
        let (base, shadow): (UInt64, UInt64) = (cpu.little(gsBase), cpu.little(shadowGS))
        put(isKernel ? base : shadow, at: gsBaseKernel)
        put(isKernel ? shadow : base, at: gsBaseUser)
        return context
    }
}
