import Glibc
import GuestModel

// A timer that a guest sets by hypercall (VCPUOP_set_singleshot_timer) is not in any state that Xen
// exposes, and only the processor itself can set it. A guest that is reverted to a point where it
// slept until such a timer would sleep forever if the timer has expired meanwhile.
//
// So each processor sets it itself before it gets its registers: it runs 16 bytes of code, without
// paging and with interrupts off, that set the timer to a time in the past. The event is pending
// when the guest's own registers are loaded; the guest's handler finds what is due, and sets the
// timer again. A guest that does not use this timer has bound no event to it, and gets none.

/// Code that runs briefly on a domain's processors in place of the guest's.
struct TimerStub {
    // The start of a page: code, the timer's setting, then two words for each processor.
    private static let settingOffset = 16
    private static let answersOffset = 32
    private static let answerByteCount = 8
    static let processorCountMax = (Page.byteCount - answersOffset) / answerByteCount

    /// `__HYPERVISOR_vcpu_op` of xen/include/public/xen.h.
    private static let vcpuOperation: UInt64 = 24
    /// `VCPUOP_set_singleshot_timer` of xen/include/public/vcpu.h.
    private static let setSingleshotTimer: UInt64 = 8

    /// The address of the code in the guest's memory.
    let address: UInt64
    /// The processors that run it.
    let processors: [UInt16]
    /// The temporary contents of the page's beginning.
    let bytes: [UInt8]

    /// - Parameters:
    ///   - frame: a page of the guest, below 4 GiB.
    ///   - processors: numbers of virtual processors; they may be a checkpoint's, and fail if they
    ///     are more than a page has room for.
    ///   - isAMD: true if the processor's hypercall instruction is VMMCALL; else VMCALL.
    init(
        frame: PageFrameNumber, processors: [UInt16], isAMD: Bool
    ) throws(GuestError) {
        guard processors.count <= TimerStub.processorCountMax else {
            throw GuestError(
                code: .stateRejected,
                message: "the state has \(processors.count) processors, and at most "
                    + "\(TimerStub.processorCountMax) can set their timers")
        }
        address = frame.rawValue * UInt64(Page.byteCount)
        precondition(address < 1 << 32, "the code runs without paging")
        self.processors = processors
        var bytes: [UInt8] = [
            0x0f, 0x01, isAMD ? 0xd9 : 0xc1,  // vmmcall or vmcall: eax = eax(ebx, ecx, edx)
            0x89, 0x06,  // mov [esi], eax
            0xc7, 0x46, 0x04, 0x01, 0x00, 0x00, 0x00,  // mov dword [esi + 4], 1
            0xf3, 0x90,  // pause
            0xeb, 0xfc,  // jmp to the pause
        ]
        // struct vcpu_set_singleshot_timer: at nanosecond 0, which may be in the past.
        bytes += [UInt8](repeating: 0, count: TimerStub.answersOffset - TimerStub.settingOffset)
        bytes += [UInt8](repeating: 0, count: processors.count * TimerStub.answerByteCount)
        self.bytes = bytes
    }

    /// A processor's record with the registers that it starts with; the rest is unchanged.
    func registers(of processor: UInt16, in record: [UInt8]) -> [UInt8] {
        var record = record
        func set<T: FixedWidthInteger>(_ field: HVMRecords.Field, _ value: T) {
            withUnsafeBytes(of: value.littleEndian) {
                record.replaceSubrange(field.rawValue..<field.rawValue + $0.count, with: $0)
            }
        }
        let position = processors.firstIndex(of: processor) ?? 0
        let answer = TimerStub.answersOffset + position * TimerStub.answerByteCount
        set(.rax, TimerStub.vcpuOperation)
        set(.rbx, TimerStub.setSingleshotTimer)
        set(.rcx, UInt64(processor))
        set(.rdx, address + UInt64(TimerStub.settingOffset))
        set(.rsi, address + UInt64(answer))
        set(.rip, address)
        // Interrupts off; the bit that is always set.
        set(.rflags, UInt64(2))
        // Protection without paging: PE and ET. Flat segments of 4 GiB, privilege 0.
        set(.cr0, UInt64(0x11))
        set(.cr3, UInt64(0))
        set(.cr4, UInt64(0))
        set(.dr7, UInt64(0x400))
        set(.efer, UInt64(0))
        set(.pendingEvent, UInt32(0))
        for segment in HVMRecords.Segment.allCases {
            let (limit, attributes) = TimerStub.form(of: segment)
            set(segment.selector, UInt32(0))
            set(segment.base, UInt64(0))
            set(segment.limit, limit)
            set(segment.attributes, attributes)
        }
        return record
    }

    /// A segment's limit; its type, privilege, presence and size as Xen packs them.
    private static func form(
        of segment: HVMRecords.Segment
    ) -> (limit: UInt32, attributes: UInt32) {
        switch segment {
        case .cs: (.max, 0xc9b)
        case .ds, .es, .fs, .gs, .ss: (.max, 0xc93)
        case .tr: (0x67, 0x8b)
        case .ldtr: (0, 0)
        }
    }

    /// Waits until every processor has set its timer; false if one has not within a second.
    ///
    /// - Parameter page: the page of the code, as the processors see it.
    func waitForAnswers(_ page: UnsafeRawBufferPointer) -> Bool {
        let deadline = ContinuousClock.now + .seconds(1)
        while true {
            let answers = processors.indices.map { position in
                let offset = TimerStub.answersOffset + position * TimerStub.answerByteCount
                return (
                    result: page.loadUnaligned(fromByteOffset: offset, as: Int32.self),
                    isThere: page.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self) != 0
                )
            }
            if answers.allSatisfy({ $0.isThere }) { return answers.allSatisfy { $0.result == 0 } }
            guard ContinuousClock.now < deadline else { return false }
            usleep(100)
        }
    }
}
