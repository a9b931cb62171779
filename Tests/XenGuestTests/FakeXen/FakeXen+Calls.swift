import Glibc
import GuestModel
import Synchronization
import VarveTestSupport

@testable import XenGuest

// MARK: - Domains

extension FakeXen {
    func facts(_ domain: UInt32) throws(GuestError) -> DomainFacts? {
        try call("facts", domain) { state in state.domains[domain]?.shownFacts }
    }

    func allFacts() throws(GuestError) -> [DomainFacts] {
        try call("allFacts") { state in
            var dom0 = DomainFacts(domain: 0)
            dom0.pageCount = 1000
            return [dom0]
                + state.domains.values.map(\.shownFacts).sorted { $0.domain < $1.domain }
        }
    }

    func pause(_ domain: UInt32) throws(GuestError) {
        try onDomain("pause", domain) { domain, _ in domain.pauseCount += 1 }
    }

    func unpause(_ domain: UInt32) throws(GuestError) {
        try onDomain("unpause", domain) { (domain, violations) throws(GuestError) in
            guard domain.pauseCount > 0 else {
                violations.append("unpaused more often than paused")
                throw FakeXen.failure("unpause", domain.number, EINVAL)
            }
            domain.pauseCount -= 1
            if domain.hasStub {
                domain.runStub()
            } else if domain.reset == nil {
                domain.still = domain.copy
            }
        }
    }

    func resumeSuspended(_ domain: UInt32) throws(GuestError) {
        try onDomain("resumeSuspended", domain) { domain, violations in
            if domain.facts.isDying {
                violations.append("a fast resume of a domain that dies: Xen 4.17 panics")
            }
            guard domain.facts.shutdown == .suspend else {
                violations.append("a fast resume of a domain that is not suspended: eax is lost")
                return
            }
            domain.still = domain.copy
            domain.facts.shutdown = nil
        }
    }

    func version() throws(GuestError) -> (major: UInt32, minor: UInt32) {
        try call("version") { $0.version }
    }
}

extension FakeDomain {
    var shownFacts: DomainFacts {
        var shown = facts
        shown.isPaused = pauseCount > 0
        return shown
    }
}

// MARK: - The dirty log

extension FakeXen {
    /// The buffer into which a log is copied.
    ///
    /// Unchecked: used by one thread at a time, as `LogBuffer` states.
    final class Buffer: LogBuffer, @unchecked Sendable {
        let words: UnsafeBufferPointer<UInt64>
        let room: UnsafeMutableBufferPointer<UInt64>

        init(frameCount: Int) {
            room = .allocate(capacity: (frameCount / 8 / Page.byteCount + 1) * Page.byteCount / 8)
            room.initialize(repeating: 0)
            words = UnsafeBufferPointer(room)
        }

        deinit { room.deallocate() }
    }

    func enableLog(_ domain: UInt32) throws(GuestError) {
        try onDomain("enableLog", domain) { (domain, _) throws(GuestError) in
            try domain.log.checkBusy(domain.number)
            if let code = domain.log.enableErrno {
                throw FakeXen.failure("enableLog", domain.number, code)
            }
            guard !domain.log.isOn else {
                throw FakeXen.failure("enableLog", domain.number, EINVAL)
            }
            domain.log.isOn = true
            domain.log.dirty = DirtyBitmap()
            domain.log.hasFailed = false
        }
    }

    func disableLog(_ domain: UInt32) throws(GuestError) {
        try onDomain("disableLog", domain) { (domain, _) throws(GuestError) in
            try domain.log.checkBusy(domain.number)
            domain.log.isOn = false
            domain.log.dirty = DirtyBitmap()
            domain.log.hasFailed = false
        }
    }

    func makeLogBuffer(frameCount: Int) throws(GuestError) -> any LogBuffer {
        try call("makeLogBuffer") { _ in }
        return Buffer(frameCount: frameCount)
    }

    func readLog(
        _ domain: UInt32, _ operation: LogOperation, into buffer: any LogBuffer, frameCount: Int,
        isFinal: Bool
    ) throws(GuestError) -> Int {
        guard let buffer = buffer as? Buffer else { preconditionFailure("a buffer of other calls") }
        // A cleared set is lost if its copy fails.
        let isLost = operation == .clean
        let taken = try onDomain("readLog", domain, failsAfterEffect: isLost) {
            (domain, _) throws(GuestError) in
            try domain.log.checkBusy(domain.number)
            if isFinal { for frame in domain.mappedByXen { domain.markDirty(frame) } }
            if domain.log.hasFailed { throw FakeXen.failure("readLog", domain.number, ENOMEM) }
            defer { if operation == .clean { domain.log.dirty = DirtyBitmap() } }
            return domain.log.dirty
        }
        for index in buffer.room.indices {
            let word = index < taken.words.count ? taken.words[index] : 0
            buffer.room[index] = index * 64 < frameCount ? word : 0
        }
        return taken.count
    }

    func logCount(_ domain: UInt32, frameCount: Int) throws(GuestError) -> Int {
        try onDomain("logCount", domain) { (domain, _) throws(GuestError) in
            try domain.log.checkBusy(domain.number)
            if domain.log.hasFailed { throw FakeXen.failure("logCount", domain.number, ENOMEM) }
            return domain.log.dirty.count
        }
    }
}

extension FakeDomain.Log {
    mutating func checkBusy(_ number: UInt32) throws(GuestError) {
        guard busyCount > 0 else { return }
        busyCount -= 1
        throw FakeXen.failure("a domctl on the log", number, EBUSY)
    }
}

// MARK: - Memory

extension FakeXen {
    func frameCount(_ domain: UInt32) throws(GuestError) -> Int {
        try onDomain("frameCount", domain) { domain, _ in Int(domain.frameEnd) }
    }

    func frameTypes(
        _ domain: UInt32, _ frames: UnsafeMutableBufferPointer<UInt>
    ) throws(GuestError) {
        let asked = frames.map { UInt64($0) }
        precondition(asked.count <= 1024, "getpageframeinfo3 takes 1,024 frames")
        let types = try onDomain("frameTypes", domain) { domain, _ in
            asked.map { domain.slots[$0] == nil ? $0 | 0xf << 28 : $0 }
        }
        for (index, type) in types.enumerated() { frames[index] = UInt(type) }
    }

    func map(
        _ domain: UInt32, _ frames: UnsafeBufferPointer<UInt>, isWritable: Bool,
        errors: UnsafeMutableBufferPointer<Int32>
    ) throws(GuestError) -> UnsafeMutableRawPointer {
        let asked = frames.map { UInt64($0) }
        let (address, slots) = try call("map", domain) { (state) throws(GuestError) in
            guard let found = state.domains[domain] else {
                throw FakeXen.failure("map", domain, ESRCH)
            }
            if isWritable && found.isRunning { state.violations.append("written while it runs") }
            let slots = asked.map { found.slots[$0] }
            let address = UInt(bitPattern: found.memory.map(slots, isWritable: isWritable))
            state.mappings[address] = Mapping(
                domain: domain, frames: asked, isWritable: isWritable)
            return (address, slots)
        }
        for (index, slot) in slots.enumerated() { errors[index] = slot == nil ? -ENOENT : 0 }
        guard let pages = UnsafeMutableRawPointer(bitPattern: address) else {
            preconditionFailure("a mapping at 0")
        }
        return pages
    }

    func unmap(_ address: UnsafeMutableRawPointer, pageCount: Int) {
        with { state in
            guard let mapping = state.mappings.removeValue(forKey: UInt(bitPattern: address)),
                mapping.frames.count == pageCount
            else {
                state.violations.append("unmapped what is not mapped so")
                return
            }
            FakeMemory.unmap(address, pageCount: pageCount)
            guard mapping.isWritable else { return }
            for frame in mapping.frames { state.domains[mapping.domain]?.markDirty(frame) }
        }
    }

    func grantTable(_ domain: UInt32) throws(GuestError) -> [GrantEntry] {
        try onDomain("grantTable", domain) { domain, _ in domain.grants }
    }
}

// MARK: - State

extension FakeXen {
    static let configuration = Array("{\"c_info\":{\"name\":\"guest\"}}".utf8)

    func hvmContext(_ domain: UInt32) throws(GuestError) -> [UInt8] {
        try onDomain("hvmContext", domain) { domain, _ in domain.context }
    }

    func setHVMContext(_ domain: UInt32, _ context: [UInt8]) throws(GuestError) {
        try onDomain("setHVMContext", domain) { domain, violations in
            if domain.isRunning { violations.append("its processors were set while it runs") }
            domain.load(context)
            domain.reset?.hasContext = true
        }
    }

    func interrupt(
        _ domain: UInt32, processor: UInt16, vector: UInt8
    ) throws(GuestError) {
        try onDomain("interrupt", domain) { domain, _ in
            domain.isAwake = true
            domain.request(vector, of: processor)
            if let event = domain.eventAtInterrupt { domain.request(event, of: processor) }
        }
    }

    func hvmParameter(_ domain: UInt32, _ index: UInt32) throws(GuestError) -> UInt64 {
        try onDomain("hvmParameter", domain) { domain, _ in domain.parameters[index] ?? 0 }
    }

    func tsc(_ domain: UInt32) throws(GuestError) -> TSCFacts {
        try onDomain("tsc", domain) { domain, _ in domain.tsc }
    }

    func policies(_ domain: UInt32) throws(GuestError) -> (cpuid: [UInt8], msr: [UInt8]) {
        try onDomain("policies", domain) { _, _ in
            ([UInt8](repeating: 1, count: 48), [UInt8](repeating: 2, count: 32))
        }
    }

    func configuration(_ domain: UInt32) throws(GuestError) -> [UInt8] {
        try call("configuration", domain) { $0.configuration }
    }

    /// Like xg_sr_save.c: suspend, write, and for a checkpointed stream resume and ask for more.
    func save(
        _ domain: UInt32, to descriptor: Int32, isCheckpointed: Bool, isLive: Bool,
        _ steps: SaveSteps
    ) throws(GuestError) {
        let epochs = try call("save", domain) { state in state.epochs }
        func check(_ isDone: Bool, _ step: String) throws(GuestError) {
            if !isDone { throw FakeXen.failure("save (\(step))", domain, EIO) }
        }
        for (index, bytes) in epochs.enumerated() {
            try check(steps.suspend(), "suspend")
            let isStill = with(domain) { !$0.isRunning }
            if !isStill { with { $0.violations.append("saved while it runs") } }
            var done = 0
            while done < bytes.count {
                let count = bytes[done...].withUnsafeBytes {
                    Glibc.write(descriptor, $0.baseAddress, min($0.count, 10_000))
                }
                guard count > 0 else { throw FakeXen.failure("save", domain, errno) }
                done += count
            }
            guard isCheckpointed else { return }
            try check(steps.postcopy(), "postcopy")
            if index == epochs.count - 1 || !steps.checkpoint() { return }
        }
    }
}

// MARK: - xenstore

extension FakeXen {
    func read(_ path: String) throws(GuestError) -> String? {
        try call("read") { state in state.store[path] }
    }

    func write(_ path: String, _ value: String) throws(GuestError) {
        try call("write") { state in state.write(path, value) }
    }

    func list(_ path: String) throws(GuestError) -> [String] {
        try call("list") { state in
            let names = state.store.keys.filter { $0.hasPrefix("\(path)/") }
                .compactMap { $0.dropFirst(path.count + 1).split(separator: "/").first }
            return Set(names.map(String.init)).sorted()
        }
    }

    func waitForRelease(milliseconds: Int) throws(GuestError) {
        try call("waitForRelease") { $0.duringWait }?()
        usleep(UInt32(min(milliseconds, 1)) * 1000)
    }

    func announceResumed(_ domain: UInt32) throws(GuestError) {
        try onDomain("announceResumed", domain) { domain, _ in domain.isReleaseDue = false }
    }
}
