import Glibc
public import GuestModel
import XenStream

// State other than memory, as it is restored in a revert to a checkpoint by pause:
//
//   prepareState   before the pages   The whole context. An event that Xen delivers after this
//                                     keeps its interrupt. In the other order its bit in memory
//                                     would stay without the interrupt, and Xen would send no
//                                     other. What is requested now stays requested: Xen's own
//                                     writes are in no dirty log, so a bit that it has set may
//                                     stay in memory. A spurious interrupt does no harm.
//   the pages
//   restoreState                      Each processor sets its timer (TimerStub). Then all of the
//                                     context but the interrupt controllers.
//
// A guest that has suspended itself sets up its timers and event channels again when it is resumed:
// its context is restored once, after the pages.

extension XenDomain {
    /// Restores the interrupt controllers, and wakes processors that wait for an interrupt: one
    /// that is reverted to a point where it was running would keep waiting.
    ///
    /// A domain with devices is reset instead (`DeviceRevert`).
    public func prepareState(_ state: GuestState) throws(GuestError) {
        let context = try context(of: state)
        if let revert, revert.step != .running { return try revert.reset() }
        if options.pauseMode == .suspend, let finishCommand {
            // From the first page on the guest is neither what it was nor the checkpoint.
            pauser.note(finish: finishCommand)
            pauser.note(.forward)
        }
        guard options.pauseMode == .pause, let records = HVMRecords(context) else { return }
        for processor in records.processors {
            try calls.interrupt(
                domainID, processor: processor, vector: records.spuriousVector(of: processor))
        }
        // Nothing may come between these two: a request that arrives there is lost.
        let live = HVMRecords(try calls.hvmContext(domainID))
        try calls.setHVMContext(
            domainID, live.map { records.requesting(interruptsOf: $0) } ?? context)
    }

    /// Restores the processors and their interrupt controllers.
    ///
    /// After a revert to a checkpoint by pause the guest finds its timer expired, with the event
    /// pending.
    public func restoreState(_ state: GuestState) throws(GuestError) {
        let context = try context(of: state)
        if let revert, revert.step != .running {
            // Even if no page differed: what the guest was doing ends here.
            revert.beginWriting()
            try GuestGeneration.renew(of: domainID, calls)
            return try revert.attach(context)
        }
        guard options.pauseMode == .pause, let records = HVMRecords(context) else {
            try GuestGeneration.renew(of: domainID, calls)
            try calls.setHVMContext(domainID, context)
            return
        }
        try runTimerStub(records)
        // The balloon driver watches this node; writing the same value has no effect except that
        // the guest sees what arrived from xenstore during the revert.
        let target = "/local/domain/\(domainID)/memory/target"
        if let value = try calls.read(target) { try calls.write(target, value) }
        try GuestGeneration.renew(of: domainID, calls)
    }

    private func context(of state: GuestState) throws(GuestError) -> [UInt8] {
        guard let context = XenOrigin.hvmContext(state) else {
            throw GuestError(
                code: .stateRejected, message: "the checkpoint has no domain state")
        }
        return context
    }

    /// Makes each processor set its timer, and restores its registers and the page of the code.
    ///
    /// After a failure the registers and the page are as in the checkpoint.
    private func runTimerStub(_ records: HVMRecords) throws(GuestError) {
        let stub = try TimerStub(
            frame: try stubFrame(), processors: records.processors,
            isAMD: HVMRecords.isAMD(cpuidPolicy: constant.cpuidPolicy))
        let page = try calls.mapForWriting(
            PageFrameNumber(stub.address / UInt64(Page.byteCount)), of: domainID)
        defer { calls.unmap(page.baseAddress.unsafelyUnwrapped, pageCount: 1) }
        let before = Array(page.prefix(stub.bytes.count))
        page.copyBytes(from: stub.bytes)
        var failure: GuestError?
        do throws(GuestError) {
            let start = records.processorsOnly { stub.registers(of: $0, in: $1) }
            try calls.setHVMContext(domainID, start)
            try calls.unpause(domainID)
            let isAnswered = stub.waitForAnswers(UnsafeRawBufferPointer(page))
            try persistently { () throws(GuestError) in try calls.pause(domainID) }
            if !isAnswered { failure = noTimer }
        } catch {
            failure = error
        }
        page.copyBytes(from: before)
        try persistently { () throws(GuestError) in
            try calls.setHVMContext(domainID, records.withoutInterrupts)
        }
        if let failure { throw failure }
    }

    private var noTimer: GuestError {
        GuestError(
            code: .callFailed,
            message: "a processor of domain \(domainID) has not set its timer: the guest may sleep "
                + "on; revert again")
    }

    /// A page in the middle of the guest's low memory, which is not a special page.
    private func stubFrame() throws(GuestError) -> PageFrameNumber {
        let runs = try layout().runs.filter { $0.end.rawValue <= 1 << 20 }
        guard let run = runs.max(by: { $0.count < $1.count }) else {
            throw GuestError(
                code: .unsupported, message: "domain \(domainID) has no memory below 4 GiB")
        }
        return PageFrameNumber(run.first.rawValue + UInt64(run.count / 2))
    }

    /// Retries a failing call for a second: the guest cannot be left in between.
    private func persistently(_ body: () throws(GuestError) -> Void) throws(GuestError) {
        for _ in 1..<100 {
            do throws(GuestError) { return try body() } catch { usleep(10_000) }
        }
        try body()
    }
}
