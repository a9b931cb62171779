import CXen
import Glibc
import GuestModel

/// `LifecycleCalls` by libxenlight, with a context of its own; its messages go to standard error.
final class LibxlLifecycleCalls: LifecycleCalls {
    private let xen: cxen_calls
    private nonisolated(unsafe) let context: OpaquePointer
    private nonisolated(unsafe) let logger: OpaquePointer

    init() throws(GuestError) {
        xen = try XenLibraries(of: XenLibraries.runningVersion()).calls
        guard let logger = xen.makeLogger(above: CXEN_LOG_ERROR) else {
            throw LibxlLifecycleCalls.failure(
                xen, "xtl_createlogger_stdiostream", CXEN_LIBXL_ERROR_FAIL)
        }
        self.logger = logger
        var context: OpaquePointer?
        let code = xen.libxl_ctx_alloc(&context, CXEN_LIBXL_VERSION, 0, logger)
        guard code == 0, let context else {
            throw LibxlLifecycleCalls.failure(xen, "libxl_ctx_alloc", code)
        }
        self.context = context
    }

    deinit {
        _ = xen.libxl_ctx_free(context)
        xen.xtl_logger_destroy(logger)
    }

    private static func failure(
        _ xen: cxen_calls, _ call: String, _ code: Int32
    ) -> GuestError {
        // No text if this version of libxenlight has no such error.
        let text = xen.libxl_error_to_string(code).map { String(cString: $0) } ?? "\(code)"
        return GuestError(code: .callFailed, message: "\(call) failed with \(text)")
    }

    private func check(_ call: String, _ code: Int32) throws(GuestError) {
        guard code == 0 else { throw LibxlLifecycleCalls.failure(xen, call, code) }
    }

    func destroy(_ domain: UInt32) throws(GuestError) {
        try check("libxl_domain_destroy", xen.libxl_domain_destroy(context, domain, nil))
    }

    func dumpCore(of domain: UInt32, to path: String) throws(GuestError) {
        try check("libxl_domain_core_dump", xen.libxl_domain_core_dump(context, domain, path, nil))
    }

    func preserve(
        _ domain: UInt32, _ configuration: [UInt8], suffix: String
    ) throws(GuestError) {
        try with(configuration) { (parsed) throws(GuestError) in
            var uuid = cxen_uuid()
            xen.libxl_uuid_generate(&uuid)
            try check(
                "libxl_domain_preserve",
                // The configuration begins with what this call takes.
                xen.libxl_domain_preserve(context, domain, parsed, suffix, uuid))
        }
    }

    func start(_ configuration: [UInt8]) throws(GuestError) -> UInt32 {
        try with(configuration) { (parsed) throws(GuestError) in
            var domain = UInt32.max
            try check(
                "libxl_domain_create_new",
                xen.libxl_domain_create_new(context, parsed, &domain, nil, nil))
            try unpause(domain)
            return domain
        }
    }

    func softReset(_ domain: UInt32, _ configuration: [UInt8]) throws(GuestError) {
        try with(configuration) { (parsed) throws(GuestError) in
            try check(
                "libxl_domain_soft_reset",
                xen.libxl_domain_soft_reset(context, parsed, domain, nil, nil))
            try unpause(domain)
        }
    }

    private func unpause(_ domain: UInt32) throws(GuestError) {
        try check("libxl_domain_unpause", xen.libxl_domain_unpause(context, domain, nil))
    }

    private func with<T>(
        _ configuration: [UInt8], _ body: (OpaquePointer) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        try xen.withConfiguration { (parsed) throws(GuestError) in
            let text = String(decoding: configuration, as: UTF8.self)
            try check(
                "libxl_domain_config_from_json",
                xen.libxl_domain_config_from_json(context, parsed, text))
            return try body(parsed)
        }
    }
}
