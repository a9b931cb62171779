import CXen
import Glibc
import GuestModel

/// `LifecycleCalls` by libxenlight, with a context of its own; its messages go to standard error.
final class LibxlLifecycleCalls: LifecycleCalls {
    private nonisolated(unsafe) let context: OpaquePointer
    private nonisolated(unsafe) let logger: UnsafeMutablePointer<xentoollog_logger>

    init() throws(GuestError) {
        guard let file = fdopen(STDERR_FILENO, "w"),
            let made = xtl_createlogger_stdiostream(file, XTL_ERROR, 0)
        else { throw LibxlLifecycleCalls.failure("xtl_createlogger_stdiostream", ERROR_FAIL) }
        logger = UnsafeMutableRawPointer(made).assumingMemoryBound(to: xentoollog_logger.self)
        var context: OpaquePointer?
        let code = libxl_ctx_alloc(&context, LIBXL_VERSION, 0, logger)
        guard code == 0, let context else {
            throw LibxlLifecycleCalls.failure("libxl_ctx_alloc", libxl_error(code))
        }
        self.context = context
    }

    deinit {
        libxl_ctx_free(context)
        xtl_logger_destroy(logger)
    }

    private static func failure(_ call: String, _ code: libxl_error) -> GuestError {
        GuestError(
            code: .callFailed,
            message: "\(call) failed with \(String(cString: libxl_error_to_string(code)))")
    }

    private func check(_ call: String, _ code: Int32) throws(GuestError) {
        guard code == 0 else { throw LibxlLifecycleCalls.failure(call, libxl_error(code)) }
    }

    func destroy(_ domain: UInt32) throws(GuestError) {
        try check("libxl_domain_destroy", libxl_domain_destroy(context, domain, nil))
    }

    func dumpCore(of domain: UInt32, to path: String) throws(GuestError) {
        try check("libxl_domain_core_dump", libxl_domain_core_dump(context, domain, path, nil))
    }

    func preserve(
        _ domain: UInt32, _ configuration: [UInt8], suffix: String
    ) throws(GuestError) {
        try with(configuration) { (parsed) throws(GuestError) in
            var uuid = libxl_uuid()
            libxl_uuid_generate(&uuid)
            try check(
                "libxl_domain_preserve",
                libxl_domain_preserve(context, domain, &parsed.c_info, suffix, uuid))
        }
    }

    func start(_ configuration: [UInt8]) throws(GuestError) -> UInt32 {
        try with(configuration) { (parsed) throws(GuestError) in
            var domain = UInt32.max
            try check(
                "libxl_domain_create_new",
                libxl_domain_create_new(context, &parsed, &domain, nil, nil))
            try unpause(domain)
            return domain
        }
    }

    func softReset(_ domain: UInt32, _ configuration: [UInt8]) throws(GuestError) {
        try with(configuration) { (parsed) throws(GuestError) in
            try check(
                "libxl_domain_soft_reset",
                libxl_domain_soft_reset(context, &parsed, domain, nil, nil))
            try unpause(domain)
        }
    }

    private func unpause(_ domain: UInt32) throws(GuestError) {
        try check("libxl_domain_unpause", libxl_domain_unpause(context, domain, nil))
    }

    private func with<T>(
        _ configuration: [UInt8], _ body: (inout libxl_domain_config) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        var parsed = libxl_domain_config()
        libxl_domain_config_init(&parsed)
        defer { libxl_domain_config_dispose(&parsed) }
        let text = String(decoding: configuration, as: UTF8.self)
        try check(
            "libxl_domain_config_from_json", libxl_domain_config_from_json(context, &parsed, text))
        return try body(&parsed)
    }
}
