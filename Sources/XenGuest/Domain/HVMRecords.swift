/// The individual records of an HVM context: {u16 type, u16 instance, u32 length, body}*, from
/// HEADER to END (xen/include/public/hvm/save.h).
struct HVMRecords {
    struct Record {
        let type: UInt16
        let instance: UInt16
        var body: [UInt8]
    }

    /// Types of xen/include/public/arch-x86/hvm/save.h.
    private enum RecordType {
        static let end: UInt16 = 0
        static let header: UInt16 = 1
        static let processor: UInt16 = 2
        static let localAPICRegisters: UInt16 = 6
        /// PIC, IOAPIC, LAPIC and its registers, interrupt lines, PIT, RTC, HPET, PMTIMER.
        static let interrupts: ClosedRange<UInt16> = 3...13
    }

    /// Offsets in `struct hvm_hw_cpu`, unchanged since Xen 4.7.
    struct Field {
        let rawValue: Int

        static let rax = Field(rawValue: 512)
        static let rbx = Field(rawValue: 520)
        static let rcx = Field(rawValue: 528)
        static let rdx = Field(rawValue: 536)
        static let rsi = Field(rawValue: 552)
        static let rip = Field(rawValue: 640)
        static let rflags = Field(rawValue: 648)
        static let cr0 = Field(rawValue: 656)
        static let cr3 = Field(rawValue: 672)
        static let cr4 = Field(rawValue: 680)
        static let dr7 = Field(rawValue: 728)
        static let efer = Field(rawValue: 992)
        static let pendingEvent = Field(rawValue: 1016)
    }

    /// Segments in the order of `struct hvm_hw_cpu`.
    enum Segment: Int, CaseIterable {
        case cs, ds, es, fs, gs, ss, tr, ldtr

        var selector: Field { Field(rawValue: 736 + 4 * rawValue) }
        var limit: Field { Field(rawValue: 768 + 4 * rawValue) }
        var base: Field { Field(rawValue: 808 + 8 * rawValue) }
        var attributes: Field { Field(rawValue: 888 + 4 * rawValue) }
    }

    /// `sizeof(struct hvm_hw_cpu)`.
    private static let processorByteCount = 1032

    private var records: [Record] = []

    /// nil if the bytes have another layout.
    init?(_ context: [UInt8]) {
        var offset = 0
        func number<T: FixedWidthInteger & BitwiseCopyable>(_ at: Int, as: T.Type) -> T {
            context.withUnsafeBytes {
                T(littleEndian: $0.loadUnaligned(fromByteOffset: at, as: T.self))
            }
        }
        while offset + 8 <= context.count {
            let type = number(offset, as: UInt16.self)
            let instance = number(offset + 2, as: UInt16.self)
            let count = Int(number(offset + 4, as: UInt32.self))
            offset += 8
            guard count <= context.count - offset else { return nil }
            if type == RecordType.processor, count != HVMRecords.processorByteCount { return nil }
            records.append(
                Record(
                    type: type, instance: instance, body: Array(context[offset..<offset + count])))
            offset += count
        }
        guard records.first?.type == RecordType.header, records.last?.type == RecordType.end,
            !processors.isEmpty
        else { return nil }
    }

    /// Numbers of the processors that are online.
    var processors: [UInt16] {
        records.filter { $0.type == RecordType.processor }.map(\.instance)
    }

    /// The spurious-interrupt vector of a processor's local APIC.
    ///
    /// 0xff, as after a reset, if the context has no local APIC.
    func spuriousVector(of processor: UInt16) -> UInt8 {
        // The register's lowest byte.
        let register = 0xf0
        return records.first {
            $0.type == RecordType.localAPICRegisters && $0.instance == processor
                && $0.body.count > register
        }?.body[register] ?? 0xff
    }

    /// True if the first leaf of a policy (`xen_cpuid_leaf_t`: leaf, subleaf, a, b, c, d) names AMD
    /// or Hygon.
    static func isAMD(cpuidPolicy: [UInt8]) -> Bool {
        guard cpuidPolicy.count >= 24 else { return false }
        let name = String(
            decoding: Array(cpuidPolicy[12..<16]) + cpuidPolicy[20..<24] + cpuidPolicy[16..<20],
            as: UTF8.self)
        return ["AuthenticAMD", "HygonGenuine"].contains(name)
    }

    /// A context that loads only processors' records, each as `change` returns it.
    func processorsOnly(_ change: (_ processor: UInt16, _ record: [UInt8]) -> [UInt8]) -> [UInt8] {
        let kept = [RecordType.header, RecordType.processor, RecordType.end]
        return bytes(
            of: records.filter { kept.contains($0.type) }.map { record in
                var record = record
                if record.type == RecordType.processor {
                    record.body = change(record.instance, record.body)
                }
                return record
            })
    }

    /// A context in which each local APIC also requests the vectors that it requests, or services,
    /// in another one, except for its spurious-interrupt vector.
    func requesting(interruptsOf other: HVMRecords) -> [UInt8] {
        // `struct hvm_hw_lapic_regs`: 256 bits each, 32 of them in each 16 bytes.
        let (serviced, requested) = (0x100, 0x200)
        return bytes(
            of: records.map { record in
                guard record.type == RecordType.localAPICRegisters,
                    let body = other.records.first(where: {
                        $0.type == record.type && $0.instance == record.instance
                    })?.body, body.count == record.body.count, body.count >= requested + 0x80
                else { return record }
                var record = record
                let spurious = Int(spuriousVector(of: record.instance))
                for vector in 0..<256 where vector != spurious {
                    let (byte, bit) = (vector / 32 * 16 + vector % 32 / 8, UInt8(1 << (vector % 8)))
                    record.body[requested + byte] |=
                        (body[requested + byte] | body[serviced + byte]) & bit
                }
                return record
            })
    }

    /// A context that leaves interrupt controllers unchanged.
    var withoutInterrupts: [UInt8] {
        bytes(of: records.filter { !RecordType.interrupts.contains($0.type) })
    }

    private func bytes(of records: [Record]) -> [UInt8] {
        var bytes: [UInt8] = []
        for record in records {
            withUnsafeBytes(of: record.type.littleEndian) { bytes += $0 }
            withUnsafeBytes(of: record.instance.littleEndian) { bytes += $0 }
            withUnsafeBytes(of: UInt32(record.body.count).littleEndian) { bytes += $0 }
            bytes += record.body
        }
        return bytes
    }
}
