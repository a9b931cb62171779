package import GuestModel

// Every call of this module to Xen's libraries, one function each; nothing else here calls them.
// `LibxenCalls` implements them; a test substitutes another implementation, to count, trace and
// fail each.

/// The hypervisor's information about a domain: `xc_domaininfo_t` of xenctrl.h.
package struct DomainFacts: Hashable, Sendable {
    package var domain: UInt32
    /// The uuid, 16 bytes.
    package var handle: [UInt8] = []
    package var isHVM = false
    package var isPaused = false
    package var isDying = false
    /// Why it has stopped, for good or for a suspension; nil while it runs.
    package var shutdown: ShutdownReason?
    package var pageCount = 0
    package var vcpuCount = 1
    /// Nanoseconds of processor time so far.
    package var cpuTime: UInt64 = 0

    package init(domain: UInt32) { self.domain = domain }
}

/// `SHUTDOWN_*` of xen/include/public/sched.h.
package enum ShutdownReason: UInt32, Hashable, Sendable {
    case powerOff = 0
    case reboot = 1
    case suspend = 2
    case crash = 3
    case watchdog = 4
    case softReset = 5
    case other = 255
}

/// An operation on the dirty log.
package enum LogOperation: Sendable {
    /// Copy and clear: `XEN_DOMCTL_SHADOW_OP_CLEAN`.
    case clean
    /// Copy: `XEN_DOMCTL_SHADOW_OP_PEEK`.
    case peek
}

/// `xc_domain_get_tsc_info`.
package struct TSCFacts: Hashable, Sendable {
    package var mode: UInt32 = 0
    package var kilohertz: UInt32 = 0
    package var nanoseconds: UInt64 = 0
    package var incarnation: UInt32 = 0

    package init() {}
}

/// Memory that Xen fills with bits: a hypercall buffer.
///
/// Bits above the requested frames are zero. Used by one thread at a time.
package protocol LogBuffer: AnyObject, Sendable {
    var words: UnsafeBufferPointer<UInt64> { get }
}

/// What libxenguest asks while it writes a stream.
package struct SaveSteps {
    /// Suspends the domain; false aborts the save.
    package var suspend: () -> Bool
    /// The pages are copied: resumes the domain; false aborts the save.
    package var postcopy: () -> Bool
    /// An epoch is written: true begins another.
    package var checkpoint: () -> Bool

    package init(
        suspend: @escaping () -> Bool, postcopy: @escaping () -> Bool,
        checkpoint: @escaping () -> Bool
    ) {
        self.suspend = suspend
        self.postcopy = postcopy
        self.checkpoint = checkpoint
    }
}

/// The libraries' calls: each blocks as long as Xen takes, each failure is a `GuestError`.
package protocol XenCalls: AnyObject, Sendable {
    /// The default directory for the locks of this hypervisor's domains.
    var lockDirectory: String { get }

    // Domains: libxenctrl.

    /// nil if there is no such domain.
    func facts(_ domain: UInt32) throws(GuestError) -> DomainFacts?
    func allFacts() throws(GuestError) -> [DomainFacts]
    func pause(_ domain: UInt32) throws(GuestError)
    func unpause(_ domain: UInt32) throws(GuestError)
    /// `xc_domain_resume(fast = 1)`: only for a domain that has suspended itself.
    func resumeSuspended(_ domain: UInt32) throws(GuestError)
    /// `xc_domain_resume(fast = 0)`: each processor continues where it was stopped, and no register
    /// is changed.
    func resumeStopped(_ domain: UInt32) throws(GuestError)
    /// `xc_domain_shutdown`: stops each processor wherever it is.
    func shutDown(_ domain: UInt32, _ reason: ShutdownReason) throws(GuestError)
    /// `xc_domain_soft_reset`: closes event channels, forgets where the guest has its `vcpu_info`,
    /// and makes the frame of `shared_info` an ordinary page.
    ///
    /// Only for an HVM or PVH domain that has shut down and is paused. Clears the shutdown; the
    /// pause remains.
    func softReset(_ domain: UInt32) throws(GuestError)
    func version() throws(GuestError) -> (major: UInt32, minor: UInt32)

    // The dirty log: libxenctrl.

    func enableLog(_ domain: UInt32) throws(GuestError)
    func disableLog(_ domain: UInt32) throws(GuestError)
    func makeLogBuffer(frameCount: Int) throws(GuestError) -> any LogBuffer
    /// Fills the buffer for frames from 0, and returns the number of set bits.
    func readLog(
        _ domain: UInt32, _ operation: LogOperation, into buffer: any LogBuffer, frameCount: Int,
        isFinal: Bool
    ) throws(GuestError) -> Int
    /// The number of set bits, without a copy.
    func logCount(_ domain: UInt32, frameCount: Int) throws(GuestError) -> Int

    // Memory: libxenctrl, libxenforeignmemory.

    /// One more than the highest frame number.
    func frameCount(_ domain: UInt32) throws(GuestError) -> Int
    /// Replaces each frame number by its type: bits 28 to 31 as in `XEN_DOMCTL_PFINFO_*`.
    func frameTypes(
        _ domain: UInt32, _ frames: UnsafeMutableBufferPointer<UInt>
    ) throws(GuestError)
    /// Maps frames contiguously; `errors` gets an error number for each.
    func map(
        _ domain: UInt32, _ frames: UnsafeBufferPointer<UInt>, isWritable: Bool,
        errors: UnsafeMutableBufferPointer<Int32>
    ) throws(GuestError) -> UnsafeMutableRawPointer
    func unmap(_ address: UnsafeMutableRawPointer, pageCount: Int)
    /// Entries of the grant table. In a table of version 2, where the mapping's bits are elsewhere,
    /// every entry that allows writing counts as written.
    func grantTable(_ domain: UInt32) throws(GuestError) -> [GrantEntry]
    /// The version of the grant table: 1 or 2.
    func grantVersion(_ domain: UInt32) throws(GuestError) -> Int
    /// Empties a grant table of version 1, but for the two entries that a new domain has: the rings
    /// of console and xenstore, for domain 0.
    ///
    /// These two stay marked as mapped if they were, because they still are.
    func resetGrantTable(
        _ domain: UInt32, consoleFrame: UInt64, storeFrame: UInt64
    ) throws(GuestError)
    /// An event channel to domain 0: `xc_evtchn_alloc_unbound`.
    func allocateChannel(_ domain: UInt32) throws(GuestError) -> UInt32

    // State: libxenctrl, libxenguest, libxenlight.

    func hvmContext(_ domain: UInt32) throws(GuestError) -> [UInt8]
    func setHVMContext(_ domain: UInt32, _ context: [UInt8]) throws(GuestError)
    /// Sends an interrupt to the local APIC of a processor, which wakes it.
    func interrupt(_ domain: UInt32, processor: UInt16, vector: UInt8) throws(GuestError)
    func hvmParameter(_ domain: UInt32, _ index: UInt32) throws(GuestError) -> UInt64
    func setHVMParameter(
        _ domain: UInt32, _ index: UInt32, _ value: UInt64
    ) throws(GuestError)
    func tsc(_ domain: UInt32) throws(GuestError) -> TSCFacts
    /// `xen_cpuid_leaf_t` and `xen_msr_entry_t` of the domain, as a stream has them.
    func policies(_ domain: UInt32) throws(GuestError) -> (cpuid: [UInt8], msr: [UInt8])
    /// The configuration as JSON, as `xl save` would write it.
    func configuration(_ domain: UInt32) throws(GuestError) -> [UInt8]
    /// Writes the domain's stream to a descriptor: `xc_domain_save`.
    func save(
        _ domain: UInt32, to descriptor: Int32, isCheckpointed: Bool, isLive: Bool,
        _ steps: SaveSteps
    ) throws(GuestError)

    // xenstore: libxenstore.

    /// nil if there is no such node.
    func read(_ path: String) throws(GuestError) -> String?
    func write(_ path: String, _ value: String) throws(GuestError)
    func list(_ path: String) throws(GuestError) -> [String]
    /// Returns when a domain was suspended, shut down or destroyed since the last call, or after
    /// the timeout.
    func waitForRelease(milliseconds: Int) throws(GuestError)
    /// Tells xenstored that a suspended domain runs again.
    func announceResumed(_ domain: UInt32) throws(GuestError)
    /// Connects xenstored to a domain that has a new event channel: `xs_introduce_domain`.
    ///
    /// For a domain that it knows, its watches and transactions end.
    func introduce(_ domain: UInt32, frame: UInt64, port: UInt32) throws(GuestError)
}

/// `grant_entry_v1` or `_v2` of xen/include/public/grant_table.h, as far as needed here.
package struct GrantEntry: Hashable, Sendable {
    /// `GTF_*`.
    package var flags: UInt16
    package var frame: UInt64

    package init(flags: UInt16, frame: UInt64) {
        self.flags = flags
        self.frame = frame
    }

    /// `GTF_permit_access`: others may map or copy the frame.
    package var permitsAccess: Bool { flags & 3 == 1 }

    /// `GTF_writing`: a writable mapping exists.
    package var isWritten: Bool { flags & 1 << 4 != 0 }

    /// `GTF_reading` or `GTF_writing`: a mapping exists.
    package var isMapped: Bool { flags & 3 << 3 != 0 }

    /// Entries at the beginning of a table that are the toolstack's: the rings of console and
    /// xenstore.
    package static let reservedCount = 2
}
