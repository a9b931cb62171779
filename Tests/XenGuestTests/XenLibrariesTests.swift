import CXen
import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import XenGuest

/// The choice and the loading of Xen's libraries, with libraries that the tests compile.
@Suite(.enabled(if: FakeLibraries.canBeMade)) struct XenLibrariesTests {
    private let libraries = FakeLibraries()

    private func load(_ minor: UInt32?) throws(GuestError) -> XenLibraries {
        try XenLibraries(
            in: libraries.path, of: minor.map { XenVersion(major: 4, minor: $0) })
    }

    /// The error of a load that must fail.
    private func failure(_ minor: UInt32?) -> String {
        do throws(GuestError) {
            let loaded = try load(minor)
            return "loaded \(loaded.version)"
        } catch {
            #expect(error.code == .unsupported)
            return error.message
        }
    }

    @Test(arguments: [17, 20] as [UInt32])
    func theVersionThatRunsIsChosen(_ minor: UInt32) throws {
        for made in [17, 20] as [UInt32] { try libraries.make(minor: made) }
        let loaded = try load(minor)
        #expect(loaded.version == XenVersion(major: 4, minor: minor))
        // Each function of a library without a version returns its number, each of the others
        // also a thousand for each version.
        var calls = loaded.calls
        typealias Function = @convention(c) () -> Int32
        let results = withUnsafeBytes(of: &calls) { table in
            table.bindMemory(to: Function.self).map { $0() }
        }
        let expected = FakeLibraries.functions.enumerated().map { number, function in
            Int32(number) + (function.library.isVersioned ? Int32(minor) * 1000 : 0)
        }
        #expect(results == expected)
        #expect(results.count > 60)
    }

    @Test func withoutAVersionTheLatestIsChosen() throws {
        try libraries.make(minor: 17)
        #expect(try load(nil).version == XenVersion(major: 4, minor: 17))
        try libraries.make(minor: 20)
        #expect(try load(nil).version == XenVersion(major: 4, minor: 20))
    }

    @Test func withoutAVersionAndLibrariesTheRemedyIsNamed() {
        let message = failure(nil)
        #expect(message.contains("no libraries of Xen are installed"), "\(message)")
        #expect(message.contains("libxenmiscVERSION"), "\(message)")
    }

    @Test func theLibrariesOfAnotherVersionAreNotLoaded() throws {
        try libraries.make(minor: 17)
        let message = failure(20)
        #expect(message.hasPrefix("the libraries of Xen 4.20, which runs here, "), "\(message)")
        #expect(message.contains("libxenctrl.so.4.20: cannot open"), "\(message)")
        #expect(message.contains("those of 4.17 are installed"), "\(message)")
        #expect(message.hasSuffix("install them (Debian: libxenmisc4.20)"), "\(message)")
    }

    @Test func aMissingLibraryIsNamed() throws {
        try libraries.make(minor: 17)
        for library in FakeLibraries.Library.allCases {
            let name = library.name(minor: 17)
            let path = libraries.path + "/" + name
            try FileManager.default.moveItem(atPath: path, toPath: path + ".away")
            let message = failure(17)
            #expect(message.contains("\(name): cannot open shared object file"), "\(message)")
            #expect(message.hasSuffix("install them (Debian: libxenmisc4.17)"), "\(message)")
            #expect(!message.contains("are installed"), "\(message)")
            try FileManager.default.moveItem(atPath: path + ".away", toPath: path)
        }
        #expect(failure(17) == "loaded 4.17")
    }

    /// The first and the last function of each library.
    @Test func aMissingFunctionIsNamed() throws {
        try libraries.make(minor: 20)
        for library in FakeLibraries.Library.allCases {
            let all = FakeLibraries.functions.filter { $0.library == library }.map(\.name)
            for function in try [#require(all.first), #require(all.last)] {
                try libraries.make(library, minor: 20, without: function)
                let message = failure(20)
                let path = "\(libraries.path)/\(library.name(minor: 20))"
                #expect(
                    message.hasPrefix("the libraries of Xen 4.20 lack a function (\(path): "),
                    "\(message)")
                #expect(message.contains("undefined symbol: \(function))"), "\(message)")
            }
            try libraries.make(library, minor: 20)
        }
        #expect(failure(20) == "loaded 4.20")
    }

    @Test(arguments: [16, 23] as [UInt32]) func anUnknownVersionIsRefused(_ minor: UInt32) throws {
        try libraries.make(minor: minor)
        let message = failure(minor)
        #expect(message.contains("Xen 4.\(minor) runs here"), "\(message)")
        #expect(message.contains("4.17 to 4.22"), "\(message)")
    }

    // MARK: - The hypervisor's version

    /// Makes a directory like sysfs, and asks it.
    private func version(_ major: String?, _ minor: String?) throws -> XenVersion? {
        let folder = libraries.path + "/sys/hypervisor/version"
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: true)
        for (name, text) in [("major", major), ("minor", minor)] {
            if let text { try Data(text.utf8).write(to: URL(fileURLWithPath: "\(folder)/\(name)")) }
        }
        return XenLibraries.runningVersion(system: libraries.path + "/sys", in: libraries.path)
    }

    @Test func theVersionIsReadFromSysfs() throws {
        #expect(try version("4\n", "20\n") == XenVersion(major: 4, minor: 20))
    }

    @Test func withoutSysfsTheHypervisorIsAsked() throws {
        #expect(try version(nil, nil) == nil)
        try libraries.makeXencall(answer: "4 << 16 | 17")
        #expect(try version(nil, nil) == XenVersion(major: 4, minor: 17))
        // Half of it is none.
        #expect(try version("4\n", nil) == XenVersion(major: 4, minor: 17))
        #expect(try version("4\n", "x") == XenVersion(major: 4, minor: 17))
    }

    @Test func aHypervisorThatMayNotBeAskedHasNoVersion() throws {
        try libraries.makeXencall(answer: "-1")
        #expect(try version(nil, nil) == nil)
    }
}

/// Libraries with the names and functions of Xen's, in a directory of their own.
struct FakeLibraries {
    /// As in CXen.c.
    enum Library: String, CaseIterable {
        case TOOLLOG, MEMORY, MODEL, STORE, CONTROL, GUEST, LIGHT

        /// The soname for Xen 4.`minor`.
        func name(minor: UInt32) -> String {
            switch self {
            case .TOOLLOG: "libxentoollog.so.1"
            case .MEMORY: "libxenforeignmemory.so.1"
            case .MODEL: "libxendevicemodel.so.1"
            case .STORE: "libxenstore.so.4"
            case .CONTROL: "libxenctrl.so.4.\(minor)"
            case .GUEST: "libxenguest.so.4.\(minor)"
            case .LIGHT: "libxenlight.so.4.\(minor)"
            }
        }

        var isVersioned: Bool { self == .CONTROL || self == .GUEST || self == .LIGHT }
    }

    /// The functions of `cxen_calls`, as listed in Sources/CXen/functions.h: in its order.
    static let functions: [(library: Library, name: String)] = {
        let file = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .appendingPathComponent("../../Sources/CXen/functions.h")
        let text = (try? String(contentsOf: file, encoding: .utf8)) ?? ""
        return text.matches(of: /FUNCTION\((\w+), (\w+)\)/).compactMap { match in
            Library(rawValue: String(match.1)).map { ($0, String(match.2)) }
        }
    }()

    /// The compiler of C: clang comes with Swift.
    private static let compiler: String? = {
        let folders = (ProcessInfo.processInfo.environment["PATH"] ?? "").split(separator: ":")
        let paths = ["clang", "cc", "gcc"].flatMap { name in folders.map { "\($0)/\(name)" } }
        return paths.first { FileManager.default.isExecutableFile(atPath: $0) }
    }()

    static let canBeMade: Bool = {
        if compiler != nil { return true }
        noteSkipped("skipped, the loading of Xen's libraries: there is no compiler of C")
        return false
    }()

    private let directory = TemporaryDirectory()
    var path: String { directory.path.string }

    /// Makes all libraries of Xen 4.`minor`; those without a version are made again.
    func make(minor: UInt32) throws {
        for library in Library.allCases { try make(library, minor: minor) }
    }

    /// Makes one library, perhaps without one of its functions.
    func make(_ library: Library, minor: UInt32, without missing: String? = nil) throws {
        let base = library.isVersioned ? minor * 1000 : 0
        let source = FakeLibraries.functions.enumerated()
            .filter { $0.element.library == library && $0.element.name != missing }
            .map { "int \($1.name)(void) { return \($0) + \(base); }\n" }
        try compile(source.joined(), library.name(minor: minor))
    }

    /// Makes libxencall, whose hypercall for the version returns `answer`, and the logger for it.
    func makeXencall(answer: String) throws {
        try compile(
            """
            static int logger;
            void *xtl_createlogger_stdiostream(void *stream, unsigned level, unsigned flags) {
                return stream && level == 9 && !flags ? &logger : 0;
            }
            void xtl_logger_destroy(void *made) {}
            """, "libxentoollog.so.1")
        try compile(
            """
            static int handle;
            void *xencall_open(void *logger, unsigned flags) { return logger ? &handle : 0; }
            int xencall2(void *call, unsigned op, unsigned long one, unsigned long two) {
                return call == &handle && op == 17 && one == 0 && two == 0 ? \(answer) : -2;
            }
            int xencall_close(void *call) { return 0; }
            """, "libxencall.so.1")
    }

    private func compile(_ source: String, _ name: String) throws {
        let file = path + "/source.c"
        try Data(source.utf8).write(to: URL(fileURLWithPath: file))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: try #require(FakeLibraries.compiler))
        process.arguments = [
            "-shared", "-fPIC", "-nostdlib", "-Wl,-soname,\(name)", "-o", "\(path)/\(name)", file,
        ]
        let end = try process.runToEnd()
        #expect(end.status == 0, "\(String(decoding: end.error, as: UTF8.self))")
    }
}
