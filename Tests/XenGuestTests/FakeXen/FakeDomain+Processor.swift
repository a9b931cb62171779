import GuestModel

@testable import XenGuest

/// The domain's one processor: its registers, and the code that runs in place of the guest's.
extension FakeDomain {
    /// Takes the records of a context; missing records leave the present ones unchanged.
    mutating func load(_ context: [UInt8]) {
        var records = FakeDomain.records(self.context)
        for (kind, bytes) in FakeDomain.records(context) {
            guard let position = records.firstIndex(where: { $0.kind == kind }) else {
                preconditionFailure("a record that the domain has not")
            }
            records[position].bytes = bytes
        }
        self.context = records.flatMap(\.bytes)
    }

    private static func records(_ context: [UInt8]) -> [(kind: [UInt8], bytes: [UInt8])] {
        var found: [(kind: [UInt8], bytes: [UInt8])] = []
        var rest = context[...]
        while rest.count >= 8 {
            let start = rest.startIndex
            let count = rest[(start + 4)..<(start + 8)].reversed().reduce(0) { $0 << 8 | Int($1) }
            found.append((Array(rest.prefix(4)), Array(rest.prefix(8 + count))))
            rest = rest.dropFirst(8 + count)
        }
        return found
    }

    /// A word of the processor's record, after the record's header.
    private func register(_ field: HVMRecords.Field) -> Int {
        let start = FakeDomain.records(context)[0].bytes.count + 8 + field.rawValue
        return context[start..<start + 8].reversed().reduce(0) { $0 << 8 | Int($1) }
    }

    /// Makes the processor's local APIC, if there is one, request a vector.
    mutating func request(_ vector: UInt8, of processor: UInt16) {
        var records = FakeDomain.records(context)
        let kind: [UInt8] = [6, 0, UInt8(processor & 0xff), UInt8(processor >> 8)]
        guard let position = records.firstIndex(where: { $0.kind == kind }) else { return }
        let byte = 8 + 0x200 + Int(vector) / 32 * 16 + Int(vector) % 32 / 8
        records[position].bytes[byte] |= 1 << (vector % 8)
        context = records.flatMap(\.bytes)
    }

    /// True if the processor has paging off, which no guest here does.
    var hasStub: Bool { register(.cr0) == 0x11 && register(.efer) == 0 }

    /// Runs the code as the processor would: up to the hypercall, and its result.
    mutating func runStub() {
        guard isAwake, !isStuck else { return }
        let frame = UInt64(register(.rip) / Page.byteCount)
        guard let slot = slots[frame] else { preconditionFailure("no memory where it runs") }
        let page = memory.page(slot)
        let (code, answer) = (register(.rip) % Page.byteCount, register(.rsi) % Page.byteCount)
        let isCall = page[code] == 0x0f && page[code + 1] == 0x01
        precondition(isCall && register(.rax) == 24 && register(.rbx) == 8, "no timer is set")
        timerCount += 1
        page.storeBytes(of: 0, toByteOffset: answer, as: UInt32.self)
        page.storeBytes(of: 1, toByteOffset: answer + 4, as: UInt32.self)
        markDirty(frame)
    }
}
