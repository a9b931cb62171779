import CXen
import Glibc
import GuestModel

/// Xen's libraries, which are loaded when live domains are used for the first time.
///
/// So one build runs on hosts without Xen, and with each version that is `known`. libxenctrl,
/// libxenguest and libxenlight carry the version in their names, and the hypervisor refuses those
/// with another interface than its own, so the libraries are those of the hypervisor that runs. The
/// dynamic linker finds them where it finds linked ones (decision 0030).
struct XenLibraries {
    /// The version of Xen that they belong to.
    let version: XenVersion
    let calls: cxen_calls

    /// The versions that the declarations in CXen.h were compared with.
    static let known = (first...last).map { XenVersion(major: 4, minor: $0) }
    private static let (first, last): (UInt32, UInt32) = (17, 22)

    /// Whether the layouts that CXen.h declares are those of this processor.
    #if arch(x86_64)
        private static let isSupported = true
    #else
        private static let isSupported = false
    #endif

    /// Loads the libraries of the hypervisor that runs; if its version cannot be read, the latest
    /// ones that are installed.
    ///
    /// - Parameters:
    ///   - directory: where the libraries are, instead of the dynamic linker's own places.
    ///   - running: the hypervisor's version; nil if it cannot be read.
    init(in directory: String? = nil, of running: XenVersion?) throws(GuestError) {
        guard XenLibraries.isSupported else {
            throw GuestError(
                code: .unsupported, message: "live domains of Xen are supported on x86-64 only")
        }
        guard let version = running ?? XenLibraries.installed(in: directory).last else {
            throw GuestError(
                code: .unsupported,
                message: "no libraries of Xen are installed, and the hypervisor's version cannot "
                    + "be read; install the libraries of the Xen that runs here ("
                    + XenLibraries.package("VERSION") + ")")
        }
        guard XenLibraries.known.contains(version) else {
            throw GuestError(
                code: .unsupported,
                message:
                    "Xen \(version) runs here, and this version of Varve knows the libraries of "
                    + "Xen 4.\(XenLibraries.first) to 4.\(XenLibraries.last) only; use another one")
        }
        var calls = cxen_calls()
        var problem = [CChar](repeating: 0, count: 1024)
        let code = cxen_load(
            directory, version.major, version.minor, &calls, &problem, problem.count)
        guard code == 0 else {
            let bytes = problem.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
            throw XenLibraries.failure(
                version, isIncomplete: code == -2, String(decoding: bytes, as: UTF8.self),
                directory)
        }
        self.version = version
        self.calls = calls
    }

    private static func failure(
        _ version: XenVersion, isIncomplete: Bool, _ problem: String, _ directory: String?
    ) -> GuestError {
        if isIncomplete {
            return GuestError(
                code: .unsupported,
                message: "the libraries of Xen \(version) lack a function (\(problem)); install "
                    + "those that this version of Xen comes with (\(package("\(version)")))")
        }
        let others = installed(in: directory).filter { $0 != version }
        let hint =
            others.isEmpty
            ? ""
            : "; those of \(others.map(\.description).joined(separator: ", ")) are installed, "
                + "which are for another hypervisor"
        return GuestError(
            code: .unsupported,
            message: "the libraries of Xen \(version), which runs here, cannot be loaded "
                + "(\(problem))\(hint); install them (\(package("\(version)")))")
    }

    private static func package(_ version: String) -> String { "Debian: libxenmisc\(version)" }

    /// The known versions whose libxenctrl is installed.
    private static func installed(in directory: String?) -> [XenVersion] {
        known.filter { cxen_is_installed(directory, $0.major, $0.minor) == 1 }
    }

    /// The version of the hypervisor that runs; nil if none does, or if it may not be asked.
    ///
    /// - Parameter system: where sysfs is mounted.
    static func runningVersion(
        system: String = "/sys", in directory: String? = nil
    ) -> XenVersion? {
        func number(_ name: String) -> UInt32? {
            let text = system_text(of: "\(system)/hypervisor/version/\(name)")
            return UInt32(text.split(separator: "\n").first ?? "")
        }
        if let major = number("major"), let minor = number("minor") {
            return XenVersion(major: major, minor: minor)
        }
        // A container may have no sysfs.
        let answer = cxen_ask_version(directory)
        guard answer >= 0 else { return nil }
        return XenVersion(major: UInt32(answer) >> 16, minor: UInt32(answer) & 0xffff)
    }
}

extension cxen_calls {
    /// A logger that prints to standard error what is at least so severe (`CXEN_LOG_…`).
    func makeLogger(above level: UInt32) -> OpaquePointer? {
        guard let file = fdopen(STDERR_FILENO, "w") else { return nil }
        return xtl_createlogger_stdiostream(file, level, 0)
    }

    /// Calls `body` with a `libxl_domain_config`, whose size only libxenlight knows.
    func withConfiguration<T>(
        _ body: (OpaquePointer) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        let memory = UnsafeMutableRawPointer.allocate(
            byteCount: Int(CXEN_CONFIG_SIZE), alignment: 16)
        defer { memory.deallocate() }
        let configuration = OpaquePointer(memory)
        libxl_domain_config_init(configuration)
        defer { libxl_domain_config_dispose(configuration) }
        return try body(configuration)
    }
}
