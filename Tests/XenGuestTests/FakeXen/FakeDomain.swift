import GuestModel
import VarveTestSupport

@testable import XenGuest

/// A domain as seen by the hypervisor, with a guest that writes, balloons, shares pages with a
/// backend and answers requests to suspend, as configured.
struct FakeDomain {
    /// The guest's response to a request to suspend.
    ///
    /// Numbers count calls to the hypervisor, which are the guest's clock.
    enum Answer: Hashable {
        case suspends(acknowledgedAfter: Int, stillAfter: Int)
        /// Reads nothing.
        case never
        /// Empties the node and continues.
        case acknowledgesOnly
        /// Reads the request at the moment when it is withdrawn.
        case whenWithdrawn
        /// Shuts down for another reason.
        case ends(ShutdownReason)
        /// Is destroyed in the meantime.
        case vanishes
    }

    /// The state when it was last resumed.
    struct Copy {
        var pages: [UInt64: [UInt8]] = [:]
        var context: [UInt8] = []
    }

    /// The dirty log, like Xen's `paging_log_dirty_op`.
    struct Log {
        var isOn = false
        var dirty = DirtyBitmap()
        /// The hypervisor had no memory for a leaf: the set is invalid until the log is turned off.
        var hasFailed = false
        /// Domctls that return EBUSY before one succeeds.
        var busyCount = 0
        /// The error of `ENABLE`; nil for success.
        var enableErrno: Int32?
    }

    let number: UInt32
    let memory = FakeMemory()
    var facts: DomainFacts
    var pauseCount = 0
    var log = Log()
    /// The slot of each frame's page.
    var slots: [UInt64: Int] = [:]
    private var slotEnd = 0
    var context: [UInt8]
    /// The processor is not waiting for an interrupt.
    var isAwake = false
    /// The processor runs nothing, whatever it is given.
    var isStuck = false
    /// The number of times that the processor has set its timer for the guest.
    var timerCount = 0
    var parameters: [UInt32: UInt64] = [1: 0x2b01, 5: 0xfeffc, 17: 0xfeffe, 19: 5]
    var tsc = TSCFacts()
    var grants: [GrantEntry] = []
    /// Frames that the hypervisor itself has mapped for writing: only FINAL names them.
    var mappedByXen: [UInt64] = []
    /// The vector of an event that Xen delivers just after the request for an interrupt.
    var eventAtInterrupt: UInt8?
    var answer = Answer.suspends(acknowledgedAfter: 1, stillAfter: 2)
    var requested: Int?
    /// Its processors were stopped by force.
    var isHalted = false
    /// Since a soft reset, until it runs.
    var reset: Reset?
    var grantVersion = 1
    /// Times that a back end must be told to close before it lets go.
    var closesNeeded = 0
    var closeCount = 0
    /// The guest connects its devices when it runs after a reset.
    var connects = true
    /// xenstored has noted the suspension, and no resumption yet.
    var isReleaseDue = false

    // The guest's actions on each call while it runs.
    var writesPerCallMax = 0
    var balloons = false
    var random: SeededGenerator
    var still = Copy()

    init(_ number: UInt32, frames: [Range<UInt64>], seed: UInt64, isHVM: Bool = true) {
        self.number = number
        facts = DomainFacts(domain: number)
        facts.isHVM = isHVM
        random = SeededGenerator(seed: seed)
        facts.handle = some(16, &random)
        context = StreamMaker.hvmContext(&random)
        tsc.kilohertz = 2_400_000
        for frame in frames.joined() { populate(frame) }
    }

    var isRunning: Bool {
        facts.shutdown == nil && pauseCount == 0 && !facts.isDying
    }

    var frameEnd: UInt64 { (slots.keys.max() ?? 0) + 1 }

    // MARK: - Memory

    mutating func populate(_ frame: UInt64) {
        slots[frame] = slotEnd
        slotEnd += 1
        facts.pageCount = slots.count
    }

    /// A write by the guest: logged.
    mutating func write(_ frame: UInt64, _ bytes: [UInt8]) {
        precondition(isRunning, "a paused domain writes nothing")
        overwrite(frame, bytes)
        markDirty(frame)
    }

    /// A write that is not logged.
    func overwrite(_ frame: UInt64, _ bytes: [UInt8]) {
        guard let slot = slots[frame] else { preconditionFailure("frame \(frame) has no page") }
        memory.page(slot).copyBytes(from: bytes)
    }

    mutating func markDirty(_ frame: UInt64) {
        if log.isOn { log.dirty.insert(PageFrameNumber(frame)) }
    }

    func bytes(_ frame: UInt64) -> [UInt8]? {
        slots[frame].map { Array(memory.page($0)) }
    }

    var copy: Copy {
        Copy(pages: slots.mapValues { Array(memory.page($0)) }, context: context)
    }

    /// Returns a page to Xen; before Xen 4.22 the log does not record it.
    mutating func release(_ frame: UInt64) {
        slots[frame] = nil
        facts.pageCount = slots.count
    }

    /// Allocates a page, and writes it as Linux does.
    mutating func take(_ frame: UInt64) {
        guard slots[frame] == nil else { return }
        populate(frame)
        write(frame, page())
    }

    // MARK: - The guest

    mutating func page() -> [UInt8] {
        switch Int.random(in: 0..<4, using: &random) {
        case 0: [UInt8](repeating: 0, count: Page.byteCount)
        case 1: [UInt8](repeating: .random(in: 1...9, using: &random), count: Page.byteCount)
        default: Array((0..<64).map { _ in some(64, &random) }.joined())
        }
    }

    /// One step of the guest.
    mutating func live(isScanned: Bool) {
        guard isRunning, !hasStub, writesPerCallMax > 0 else { return }
        let frames = slots.keys.sorted()
        for _ in 0..<Int.random(in: 0...writesPerCallMax, using: &random) {
            guard let frame = frames.randomElement(using: &random) else { return }
            write(frame, page())
        }
        context[context.count - 20] &+= 1
        if let frame = mappedByXen.randomElement(using: &random), slots[frame] != nil {
            overwrite(frame, page())
        }
        for grant in grants where grant.isWritten && Bool.random(using: &random) {
            overwrite(grant.frame, page())
        }
        if balloons, !isScanned, Int.random(in: 0..<12, using: &random) == 0 { balloon(frames) }
        if Int.random(in: 0..<10, using: &random) == 0 { regrant(slots.keys.sorted()) }
    }

    private mutating func balloon(_ frames: [UInt64]) {
        let kept = Set(grants.map(\.frame) + mappedByXen)
        for _ in 0..<Int.random(in: 0...2, using: &random) {
            guard slots.count > 50, let frame = frames.dropLast().randomElement(using: &random),
                !kept.contains(frame)
            else { continue }
            release(frame)
        }
        for _ in 0..<Int.random(in: 0...2, using: &random) {
            take(.random(in: 0..<frameEnd, using: &random))
        }
    }

    /// A backend maps and unmaps a page.
    private mutating func regrant(_ frames: [UInt64]) {
        guard !grants.isEmpty, let frame = frames.randomElement(using: &random) else { return }
        let index = Int.random(in: 0..<grants.count, using: &random)
        // Xen marks the page at the unmap of a writable mapping.
        if grants[index].isWritten { markDirty(grants[index].frame) }
        grants[index] = GrantEntry(
            flags: Bool.random(using: &random) ? 1 | 1 << 3 | 1 << 4 : 1, frame: frame)
    }
}
