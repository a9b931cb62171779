import CXen
import Glibc
package import GuestModel
import Synchronization

/// The calls, implemented with the libraries of the Xen that runs (`XenLibraries`).
///
/// Several threads may use the handles (libxenctrl: one hypercall buffer cache with a lock), but
/// only one may call `waitForRelease`.
package final class LibxenCalls: XenCalls {
    private let xen: cxen_calls
    private nonisolated(unsafe) let control: OpaquePointer
    private nonisolated(unsafe) let memory: OpaquePointer
    private nonisolated(unsafe) let store: OpaquePointer
    private nonisolated(unsafe) let deviceModel: OpaquePointer
    private nonisolated(unsafe) let logger: OpaquePointer
    private let libxl = Mutex<Handle?>(nil)
    private let isWatching = Mutex(false)

    private struct Handle: @unchecked Sendable { let pointer: OpaquePointer }

    /// Opens all handles.
    ///
    /// Throws one sentence if there is no Xen, no library of it, or no permission.
    package init() throws(GuestError) {
        guard LibxenCalls.hasPrivilegedDevice else {
            throw GuestError(
                code: .unsupported,
                message: "no Xen runs here, or this is not its control domain: there is neither "
                    + "/dev/xen/privcmd nor /proc/xen/privcmd; run it in dom0")
        }
        let xen = try XenLibraries(of: XenLibraries.runningVersion()).calls
        guard let tool = xen.makeLogger(above: CXEN_LOG_CRITICAL) else {
            throw LibxenCalls.failure("xtl_createlogger_stdiostream", nil)
        }
        // Failures are reported by the errors of this class; the libraries' own lines would repeat
        // them.
        logger = tool
        guard let control = xen.xc_interface_open(tool, tool, 0) else {
            let error = LibxenCalls.failure("xc_interface_open", nil)
            xen.xtl_logger_destroy(tool)
            throw error
        }
        guard let memory = xen.xenforeignmemory_open(tool, 0) else {
            let error = LibxenCalls.failure("xenforeignmemory_open", nil)
            _ = xen.xc_interface_close(control)
            xen.xtl_logger_destroy(tool)
            throw error
        }
        guard let deviceModel = xen.xendevicemodel_open(tool, 0) else {
            let error = LibxenCalls.failure("xendevicemodel_open", nil)
            _ = xen.xenforeignmemory_close(memory)
            _ = xen.xc_interface_close(control)
            xen.xtl_logger_destroy(tool)
            throw error
        }
        guard let store = xen.xs_open(0) else {
            let error = LibxenCalls.failure("xs_open", nil)
            _ = xen.xendevicemodel_close(deviceModel)
            _ = xen.xenforeignmemory_close(memory)
            _ = xen.xc_interface_close(control)
            xen.xtl_logger_destroy(tool)
            throw error
        }
        self.xen = xen
        self.control = control
        self.memory = memory
        self.store = store
        self.deviceModel = deviceModel
    }

    deinit {
        if let libxl = libxl.withLock({ $0 }) { _ = xen.libxl_ctx_free(libxl.pointer) }
        xen.xs_close(store)
        _ = xen.xendevicemodel_close(deviceModel)
        _ = xen.xenforeignmemory_close(memory)
        _ = xen.xc_interface_close(control)
        xen.xtl_logger_destroy(logger)
    }

    package let lockDirectory = "/run/varve"

    private static var hasPrivilegedDevice: Bool {
        access("/dev/xen/privcmd", F_OK) == 0 || access("/proc/xen/privcmd", F_OK) == 0
    }

    private static func failure(_ call: String, _ domain: UInt32?) -> GuestError {
        let code = errno
        let reason = String(cString: strerror(code))
        let of = domain.map { " for domain \($0)" } ?? ""
        let remedy =
            switch code {
            // Xen's answer to libraries of another build than its own.
            case EACCES where geteuid() == 0: "; are Xen's libraries those of the Xen that runs?"
            case EPERM, EACCES: "; run it as root in dom0"
            case ENOENT, ENXIO, ECONNREFUSED: "; is Xen's toolstack running?"
            default: ""
            }
        return GuestError(
            code: .callFailed, message: "\(call)\(of) failed: \(reason)\(remedy)", errno: code)
    }

    private func check(
        _ call: String, _ domain: UInt32?, _ result: Int32
    ) throws(GuestError) {
        if result < 0 { throw LibxenCalls.failure(call, domain) }
    }

    // MARK: - Domains

    // `xc_domain_getinfolist` is in every version of Xen that Varve knows; `xc_domain_getinfo` was
    // removed in 4.18.

    package func facts(_ domain: UInt32) throws(GuestError) -> DomainFacts? {
        var info = cxen_domaininfo()
        let count = xen.xc_domain_getinfolist(control, domain, 1, &info)
        // It returns the next domain if the requested one is gone.
        if count == 0 || (count < 0 && errno == ESRCH) { return nil }
        if count < 0 { throw LibxenCalls.failure("xc_domain_getinfolist", domain) }
        return UInt32(info.domain) == domain ? LibxenCalls.facts(info) : nil
    }

    package func allFacts() throws(GuestError) -> [DomainFacts] {
        var all: [DomainFacts] = []
        var next: UInt32 = 0
        while true {
            var infos = [cxen_domaininfo](repeating: cxen_domaininfo(), count: 256)
            let count = xen.xc_domain_getinfolist(control, next, UInt32(infos.count), &infos)
            if count < 0 && errno != ESRCH {
                throw LibxenCalls.failure("xc_domain_getinfolist", nil)
            }
            guard count > 0 else { return all }
            for info in infos[..<Int(count)] {
                all.append(LibxenCalls.facts(info))
                next = UInt32(info.domain) + 1
            }
        }
    }

    private static func facts(_ info: cxen_domaininfo) -> DomainFacts {
        var facts = DomainFacts(domain: UInt32(info.domain))
        withUnsafeBytes(of: info.handle) { facts.handle = Array($0) }
        func has(_ flag: UInt32) -> Bool { info.flags & flag != 0 }
        facts.isHVM = has(CXEN_DOMINF_HVM_GUEST)
        facts.isPaused = has(CXEN_DOMINF_PAUSED)
        facts.isDying = has(CXEN_DOMINF_DYING)
        // A crash is a shutdown with that reason.
        if has(CXEN_DOMINF_SHUTDOWN) {
            let reason = info.flags >> CXEN_DOMINF_SHUTDOWN_SHIFT
            facts.shutdown =
                ShutdownReason(rawValue: reason & CXEN_DOMINF_SHUTDOWN_MASK) ?? .other
        }
        facts.pageCount = Int(info.tot_pages)
        facts.vcpuCount = Int(info.nr_online_vcpus)
        facts.cpuTime = info.cpu_time
        return facts
    }

    package func pause(_ domain: UInt32) throws(GuestError) {
        try check("xc_domain_pause", domain, xen.xc_domain_pause(control, domain))
    }

    package func unpause(_ domain: UInt32) throws(GuestError) {
        try check("xc_domain_unpause", domain, xen.xc_domain_unpause(control, domain))
    }

    package func resumeSuspended(_ domain: UInt32) throws(GuestError) {
        try check("xc_domain_resume", domain, xen.xc_domain_resume(control, domain, 1))
    }

    package func resumeStopped(_ domain: UInt32) throws(GuestError) {
        try check("xc_domain_resume(slow)", domain, xen.xc_domain_resume(control, domain, 0))
    }

    package func shutDown(_ domain: UInt32, _ reason: ShutdownReason) throws(GuestError) {
        try check(
            "xc_domain_shutdown", domain,
            xen.xc_domain_shutdown(control, domain, Int32(reason.rawValue)))
    }

    package func softReset(_ domain: UInt32) throws(GuestError) {
        try check("xc_domain_soft_reset", domain, xen.xc_domain_soft_reset(control, domain))
    }

    package func version() throws(GuestError) -> (major: UInt32, minor: UInt32) {
        let version = xen.xc_version(control, CXEN_XENVER_VERSION, nil)
        try check("xc_version", nil, version)
        return (UInt32(version) >> 16, UInt32(version) & 0xffff)
    }

    // MARK: - The dirty log

    package func enableLog(_ domain: UInt32) throws(GuestError) {
        let operation = CXEN_SHADOW_OP_ENABLE_LOGDIRTY
        try check(
            "xc_shadow_control(ENABLE_LOGDIRTY)", domain,
            xen.xc_shadow_control(control, domain, operation, nil, 0))
    }

    package func disableLog(_ domain: UInt32) throws(GuestError) {
        let operation = CXEN_SHADOW_OP_OFF
        try check(
            "xc_shadow_control(OFF)", domain,
            xen.xc_shadow_control(control, domain, operation, nil, 0))
    }

    /// What `DECLARE_HYPERCALL_BUFFER` and `xc_hypercall_buffer_alloc_pages` do in C.
    private final class Buffer: LogBuffer, @unchecked Sendable {
        // Unchecked: used by one thread at a time, see `LogBuffer`.
        private let owner: LibxenCalls
        fileprivate var descriptor: cxen_hypercall_buffer
        private let pageCount: Int32
        let words: UnsafeBufferPointer<UInt64>

        init(_ owner: LibxenCalls, frameCount: Int) throws(GuestError) {
            self.owner = owner
            pageCount = Int32(frameCount / 8 / Page.byteCount + 1)
            descriptor = cxen_hypercall_buffer(
                hbuf: nil, param_shadow: nil, dir: 0, ubuf: UnsafeMutableRawPointer(bitPattern: -1),
                sz: 0)
            guard
                let bytes = owner.xen.xc__hypercall_buffer_alloc_pages(
                    owner.control, &descriptor, pageCount)
            else { throw LibxenCalls.failure("xc_hypercall_buffer_alloc_pages", nil) }
            let count = Int(pageCount) * Page.byteCount / 8
            words = UnsafeBufferPointer(
                start: bytes.assumingMemoryBound(to: UInt64.self), count: count)
        }

        deinit { owner.xen.xc__hypercall_buffer_free_pages(owner.control, &descriptor, pageCount) }
    }

    package func makeLogBuffer(frameCount: Int) throws(GuestError) -> any LogBuffer {
        try Buffer(self, frameCount: frameCount)
    }

    package func readLog(
        _ domain: UInt32, _ operation: LogOperation, into buffer: any LogBuffer, frameCount: Int,
        isFinal: Bool
    ) throws(GuestError) -> Int {
        guard let buffer = buffer as? Buffer else {
            preconditionFailure("a log buffer of another instance")
        }
        var stats = cxen_shadow_stats()
        let code =
            operation == .clean ? CXEN_SHADOW_OP_CLEAN : CXEN_SHADOW_OP_PEEK
        let mode = isFinal ? CXEN_SHADOW_LOGDIRTY_FINAL : 0
        let count = xen.xc_logdirty_control(
            control, domain, UInt32(code), &buffer.descriptor, UInt(frameCount), mode, &stats)
        guard count >= 0 else {
            throw LibxenCalls.failure("xc_logdirty_control(\(operation))", domain)
        }
        guard count == frameCount else {
            throw GuestError(
                code: .callFailed,
                message: "the dirty log of domain \(domain) covered \(count) of \(frameCount) "
                    + "frames; begin again")
        }
        return Int(stats.dirty_count)
    }

    package func logCount(_ domain: UInt32, frameCount: Int) throws(GuestError) -> Int {
        var stats = cxen_shadow_stats()
        let count = xen.xc_logdirty_control(
            control, domain, CXEN_SHADOW_OP_PEEK, nil, UInt(frameCount), 0, &stats)
        guard count >= 0 else { throw LibxenCalls.failure("xc_logdirty_control(PEEK)", domain) }
        return Int(stats.dirty_count)
    }

    // MARK: - Memory

    package func frameCount(_ domain: UInt32) throws(GuestError) -> Int {
        var count: UInt = 0
        try check("xc_domain_nr_gpfns", domain, xen.xc_domain_nr_gpfns(control, domain, &count))
        return Int(count)
    }

    package func frameTypes(
        _ domain: UInt32, _ frames: UnsafeMutableBufferPointer<UInt>
    ) throws(GuestError) {
        try check(
            "xc_get_pfn_type_batch", domain,
            xen.xc_get_pfn_type_batch(control, domain, UInt32(frames.count), frames.baseAddress))
    }

    package func map(
        _ domain: UInt32, _ frames: UnsafeBufferPointer<UInt>, isWritable: Bool,
        errors: UnsafeMutableBufferPointer<Int32>
    ) throws(GuestError) -> UnsafeMutableRawPointer {
        let protection = isWritable ? PROT_READ | PROT_WRITE : PROT_READ
        guard
            let address = xen.xenforeignmemory_map(
                memory, domain, protection, frames.count, frames.baseAddress, errors.baseAddress)
        else { throw LibxenCalls.failure("xenforeignmemory_map", domain) }
        return address
    }

    package func unmap(_ address: UnsafeMutableRawPointer, pageCount: Int) {
        _ = xen.xenforeignmemory_unmap(memory, address, pageCount)
    }

    package func grantTable(_ domain: UInt32) throws(GuestError) -> [GrantEntry] {
        let version = try grantVersion(domain)
        return try withGrantTable(domain, PROT_READ) { table in
            let entries = UnsafeRawBufferPointer(table)
            return version == 1 ? LibxenCalls.entriesV1(entries) : LibxenCalls.entriesV2(entries)
        } ?? []
    }

    package func grantVersion(_ domain: UInt32) throws(GuestError) -> Int {
        let version = xen.xc_gnttab_get_version(control, domain)
        try check("xc_gnttab_get_version", domain, version)
        return Int(version)
    }

    package func resetGrantTable(
        _ domain: UInt32, consoleFrame: UInt64, storeFrame: UInt64
    ) throws(GuestError) {
        // `struct grant_entry_v1`: u16 flags, u16 domid, u32 frame. GNTTAB_RESERVED_CONSOLE is
        // entry 0, GNTTAB_RESERVED_XENSTORE entry 1.
        _ = try withGrantTable(domain, PROT_READ | PROT_WRITE) { table in
            for (index, frame) in [consoleFrame, storeFrame].enumerated() {
                let offset = index * 8
                let flags = table.load(fromByteOffset: offset, as: UInt16.self) & 3 << 3
                table.storeBytes(
                    of: flags | UInt16(CXEN_GTF_PERMIT_ACCESS), toByteOffset: offset,
                    as: UInt16.self)
                table.storeBytes(of: 0, toByteOffset: offset + 2, as: UInt16.self)
                table.storeBytes(
                    of: UInt32(truncatingIfNeeded: frame), toByteOffset: offset + 4,
                    as: UInt32.self)
            }
            UnsafeMutableRawBufferPointer(rebasing: table[16...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    /// Calls `body` with all frames that the table has now, mapped; nil if it has none.
    private func withGrantTable<T>(
        _ domain: UInt32, _ protection: Int32, _ body: (UnsafeMutableRawBufferPointer) -> T
    ) throws(GuestError) -> T? {
        // To map more frames would make the table grow.
        var size = cxen_grant_table_size()
        size.dom = UInt16(domain)
        guard xen.xc_gnttab_query_size(control, &size) == 0, size.status == 0 else {
            throw LibxenCalls.failure("xc_gnttab_query_size", domain)
        }
        guard size.nr_frames > 0 else { return nil }
        var address: UnsafeMutableRawPointer?
        let resource = xen.xenforeignmemory_map_resource(
            memory, UInt16(domain), CXEN_RESOURCE_GRANT_TABLE,
            CXEN_RESOURCE_GRANT_TABLE_SHARED, 0, UInt(size.nr_frames), &address,
            protection, 0)
        guard let resource, let address else {
            throw LibxenCalls.failure("xenforeignmemory_map_resource(grant table)", domain)
        }
        defer { _ = xen.xenforeignmemory_unmap_resource(memory, resource) }
        return body(
            UnsafeMutableRawBufferPointer(
                start: address, count: Int(size.nr_frames) * Page.byteCount))
    }

    package func allocateChannel(_ domain: UInt32) throws(GuestError) -> UInt32 {
        let port = xen.xc_evtchn_alloc_unbound(control, domain, 0)
        try check("xc_evtchn_alloc_unbound", domain, port)
        return UInt32(port)
    }

    private static func entriesV1(_ entries: UnsafeRawBufferPointer) -> [GrantEntry] {
        stride(from: 0, to: entries.count, by: 8).map { offset in
            GrantEntry(
                flags: entries.load(fromByteOffset: offset, as: UInt16.self),
                frame: UInt64(entries.load(fromByteOffset: offset + 4, as: UInt32.self)))
        }
    }

    private static func entriesV2(_ entries: UnsafeRawBufferPointer) -> [GrantEntry] {
        stride(from: 0, to: entries.count, by: 16).map { offset in
            let flags = entries.load(fromByteOffset: offset, as: UInt16.self)
            let allowsWriting = flags & UInt16(CXEN_GTF_TYPE_MASK) != 0 && flags & 1 << 2 == 0
            return GrantEntry(
                flags: allowsWriting ? flags | 1 << 4 : flags,
                frame: entries.load(fromByteOffset: offset + 8, as: UInt64.self))
        }
    }

    // MARK: - State

    package func hvmContext(_ domain: UInt32) throws(GuestError) -> [UInt8] {
        let size = xen.xc_domain_hvm_getcontext(control, domain, nil, 0)
        guard size > 0 else { throw LibxenCalls.failure("xc_domain_hvm_getcontext", domain) }
        var context = [UInt8](repeating: 0, count: Int(size))
        let count = xen.xc_domain_hvm_getcontext(control, domain, &context, UInt32(size))
        guard count > 0 else { throw LibxenCalls.failure("xc_domain_hvm_getcontext", domain) }
        return Array(context[..<Int(count)])
    }

    package func setHVMContext(_ domain: UInt32, _ context: [UInt8]) throws(GuestError) {
        var context = context
        try check(
            "xc_domain_hvm_setcontext", domain,
            xen.xc_domain_hvm_setcontext(control, domain, &context, UInt32(context.count)))
    }

    package func interrupt(
        _ domain: UInt32, processor: UInt16, vector: UInt8
    ) throws(GuestError) {
        // Xen numbers the APIC of processor n 2n. Fixed delivery, edge-triggered.
        let address = 0xfee0_0000 | UInt64(processor * 2) << 12
        try check(
            "xendevicemodel_inject_msi", domain,
            xen.xendevicemodel_inject_msi(
                deviceModel, UInt16(domain), address, UInt32(vector)))
    }

    package func hvmParameter(
        _ domain: UInt32, _ index: UInt32
    ) throws(GuestError) -> UInt64 {
        var value: UInt64 = 0
        try check(
            "xc_hvm_param_get(\(index))", domain,
            xen.xc_hvm_param_get(control, domain, index, &value))
        return value
    }

    package func setHVMParameter(
        _ domain: UInt32, _ index: UInt32, _ value: UInt64
    ) throws(GuestError) {
        try check(
            "xc_hvm_param_set(\(index))", domain,
            xen.xc_hvm_param_set(control, domain, index, value))
    }

    package func tsc(_ domain: UInt32) throws(GuestError) -> TSCFacts {
        var facts = TSCFacts()
        try check(
            "xc_domain_get_tsc_info", domain,
            xen.xc_domain_get_tsc_info(
                control, domain, &facts.mode, &facts.nanoseconds, &facts.kilohertz,
                &facts.incarnation))
        return facts
    }

    package func policies(
        _ domain: UInt32
    ) throws(GuestError) -> (cpuid: [UInt8], msr: [UInt8]) {
        guard let policy = xen.xc_cpu_policy_init() else {
            throw LibxenCalls.failure("xc_cpu_policy_init", domain)
        }
        defer { xen.xc_cpu_policy_destroy(policy) }
        var (leafCount, msrCount): (UInt32, UInt32) = (0, 0)
        try check(
            "xc_cpu_policy_get_size", domain,
            xen.xc_cpu_policy_get_size(control, &leafCount, &msrCount))
        try check(
            "xc_cpu_policy_get_domain", domain,
            xen.xc_cpu_policy_get_domain(control, domain, policy))
        var leaves = [cxen_cpuid_leaf](repeating: cxen_cpuid_leaf(), count: Int(leafCount))
        var msrs = [cxen_msr_entry](repeating: cxen_msr_entry(), count: Int(msrCount))
        try check(
            "xc_cpu_policy_serialise", domain,
            xen.xc_cpu_policy_serialise(control, policy, &leaves, &leafCount, &msrs, &msrCount))
        return (
            leaves[..<Int(leafCount)].withUnsafeBytes { Array($0) },
            msrs[..<Int(msrCount)].withUnsafeBytes { Array($0) }
        )
    }

    package func configuration(_ domain: UInt32) throws(GuestError) -> [UInt8] {
        let context = try libxlContext()
        return try xen.withConfiguration { (configuration) throws(GuestError) in
            let code = xen.libxl_retrieve_domain_configuration(
                context.pointer, domain, configuration, nil)
            guard code == 0,
                let text = xen.libxl_domain_config_to_json(context.pointer, configuration)
            else {
                throw GuestError(
                    code: .callFailed,
                    message: "libxl has no configuration of domain \(domain) (error \(code)); was "
                        + "it created by another toolstack?")
            }
            defer { free(text) }
            return Array(UnsafeRawBufferPointer(start: text, count: strlen(text)))
        }
    }

    private func libxlContext() throws(GuestError) -> Handle {
        try libxl.withLock { (slot) throws(GuestError) -> Handle in
            if let handle = slot { return handle }
            var context: OpaquePointer?
            guard xen.libxl_ctx_alloc(&context, CXEN_LIBXL_VERSION, 0, logger) == 0, let context
            else {
                throw LibxenCalls.failure("libxl_ctx_alloc", nil)
            }
            let handle = Handle(pointer: context)
            slot = handle
            return handle
        }
    }

    package func save(
        _ domain: UInt32, to descriptor: Int32, isCheckpointed: Bool, isLive: Bool,
        _ steps: SaveSteps
    ) throws(GuestError) {
        // The callbacks get the address of the steps, which is valid during the call.
        let result = withUnsafePointer(to: steps) { pointer in
            var callbacks = cxen_save_callbacks()
            callbacks.suspend = { data in LibxenCalls.steps(data).suspend() ? 1 : 0 }
            callbacks.postcopy = { data in LibxenCalls.steps(data).postcopy() ? 1 : 0 }
            callbacks.checkpoint = { data in LibxenCalls.steps(data).checkpoint() ? 1 : 0 }
            callbacks.wait_checkpoint = { _ in 1 }
            callbacks.switch_qemu_logdirty = { _, _, _ in 0 }
            callbacks.data = UnsafeMutableRawPointer(mutating: UnsafeRawPointer(pointer))
            return xen.xc_domain_save(
                control, descriptor, domain, isLive ? CXEN_SAVE_LIVE : 0, &callbacks,
                isCheckpointed ? CXEN_STREAM_REMUS : CXEN_STREAM_PLAIN, -1)
        }
        try check("xc_domain_save", domain, result)
    }

    private static func steps(_ data: UnsafeMutableRawPointer?) -> SaveSteps {
        guard let data else { preconditionFailure("libxenguest lost its callbacks' data") }
        return data.assumingMemoryBound(to: SaveSteps.self).pointee
    }

    // MARK: - xenstore

    package func read(_ path: String) throws(GuestError) -> String? {
        var count: UInt32 = 0
        guard let bytes = xen.xs_read(store, 0, path, &count) else {
            if errno == ENOENT { return nil }
            throw LibxenCalls.failure("xs_read(\(path))", nil)
        }
        defer { free(bytes) }
        return String(
            decoding: UnsafeRawBufferPointer(start: bytes, count: Int(count)), as: UTF8.self)
    }

    package func write(_ path: String, _ value: String) throws(GuestError) {
        let isWritten = value.withCString {
            xen.xs_write(store, 0, path, $0, UInt32(value.utf8.count))
        }
        guard isWritten else { throw LibxenCalls.failure("xs_write(\(path))", nil) }
    }

    package func list(_ path: String) throws(GuestError) -> [String] {
        var count: UInt32 = 0
        guard let names = xen.xs_directory(store, 0, path, &count) else {
            if errno == ENOENT { return [] }
            throw LibxenCalls.failure("xs_directory(\(path))", nil)
        }
        defer { free(names) }
        return (0..<Int(count)).compactMap { names[$0].map { String(cString: $0) } }
    }

    package func waitForRelease(milliseconds: Int) throws(GuestError) {
        let isNew = isWatching.withLock { isWatching in
            defer { isWatching = true }
            return !isWatching
        }
        // xenstored fires it when a domain is suspended too.
        if isNew, !xen.xs_watch(store, "@releaseDomain", "varve") {
            throw LibxenCalls.failure("xs_watch(@releaseDomain)", nil)
        }
        var ready = pollfd(fd: xen.xs_fileno(store), events: Int16(POLLIN), revents: 0)
        _ = poll(&ready, 1, Int32(milliseconds))
        while let event = xen.xs_check_watch(store) { free(event) }
    }

    package func announceResumed(_ domain: UInt32) throws(GuestError) {
        guard xen.xs_resume_domain(store, domain) else {
            throw LibxenCalls.failure("xs_resume_domain", domain)
        }
    }

    package func introduce(
        _ domain: UInt32, frame: UInt64, port: UInt32
    ) throws(GuestError) {
        guard xen.xs_introduce_domain(store, domain, UInt(frame), port) else {
            throw LibxenCalls.failure("xs_introduce_domain", domain)
        }
    }
}
