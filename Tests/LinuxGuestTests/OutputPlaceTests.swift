import Foundation
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport

@testable import LinuxGuest

/// What a path names as an output.
@Suite struct OutputPlaceTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> FilePath { directory.path.appending(name) }

    private func makeFile(_ name: String) throws {
        try Data("old".utf8).write(to: URL(fileURLWithPath: path(name).string))
    }

    private func refusal(_ path: FilePath) -> String {
        #expect(throws: GuestError.self, "\(path)") { try OutputPlace(path) }?.message ?? ""
    }

    @Test func eachKindIsTold() throws {
        try makeFile("file")
        try #require(mkfifo(path("pipe").string, 0o600) == 0)
        try #require(symlink("file", path("link").string) == 0)
        try #require(symlink(path("link").string, path("far").string) == 0)
        try #require(symlink("pipe", path("pipelink").string) == 0)
        #expect(try OutputPlace(path("new")) == .file(path("new"), exists: false))
        #expect(try OutputPlace(path("file")) == .file(path("file"), exists: true))
        #expect(try OutputPlace(path("link")) == .file(path("file"), exists: true))
        #expect(try OutputPlace(path("far")) == .file(path("file"), exists: true))
        #expect(try OutputPlace(path("pipe")) == .pipe(path("pipe")))
        #expect(try OutputPlace(path("pipelink")) == .pipe(path("pipe")))
        #expect(try OutputPlace("/dev/null") == .characterDevice("/dev/null"))
    }

    @Test func descriptorsAreToldByTheirNames() throws {
        let pipe = Pipe()
        let (number, end) = (
            pipe.fileHandleForWriting.fileDescriptor, pipe.fileHandleForReading.fileDescriptor
        )
        try #require(symlink("/dev/stderr", path("error").string) == 0)
        try #require(symlink("/proc/self/fd/\(number)", path("number").string) == 0)
        for (name, expected) in [
            ("/dev/stderr", 2), ("/dev/fd/\(number)", number), ("/proc/self/fd/\(number)", number),
            ("/proc/\(getpid())/fd/\(number)", number), (path("error").string, 2),
            (path("number").string, number),
        ] {
            #expect(try OutputPlace(FilePath(name)) == .descriptor(Int32(expected)), "\(name)")
        }
        #expect(refusal(FilePath("/dev/fd/\(end)")).contains("open only for reading"))
        #expect(refusal("/dev/fd/987654").contains("is not open"))
        #expect(refusal("/proc/1/fd/1").isEmpty == false)
        withExtendedLifetime(pipe) {}
    }

    @Test func whatIsNoPlaceIsRefused() throws {
        try makeFile("file")
        try #require(symlink("nothing", path("dangling").string) == 0)
        try #require(symlink("b", path("a").string) == 0)
        try #require(symlink("a", path("b").string) == 0)
        #expect(refusal(directory.path).contains("is a directory"))
        #expect(refusal(path("dangling")).contains("symbolic link to"))
        #expect(refusal(path("a")).contains("symbolic links"))
        #expect(refusal(path("file/below")).contains("Not a directory"))
        #expect(refusal(path(String(repeating: "n", count: 256))).contains("name too long"))
        #expect(refusal("").contains("empty path"))
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        let socket = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(socket) }
        let name = Array(path("socket").string.utf8)
        if name.count < MemoryLayout.size(ofValue: address.sun_path) {
            withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: name) }
            let bound = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
                }
            }
            try #require(bound == 0)
            #expect(refusal(path("socket")).contains("is a socket"))
        }
    }

    @Test func namesThatAreNotTextAreThemselves() throws {
        let odd = FilePath(bytes: path("x").bytes + [0xff, 0x80, 0x0a])
        #expect(odd.printable.hasSuffix("x\\xff\\x80\n"))
        let file = try NewFile(odd)
        try #require(write(file.descriptor, "new", 3) == 3)
        try file.finish()
        let descriptor = odd.withPlatformString { open($0, O_RDONLY) }
        #expect(descriptor >= 0)
        close(descriptor)
        #expect(try OutputPlace(odd) == .file(odd, exists: true))
        let error = #expect(throws: GuestError.self) { try NewFile(odd) }
        #expect(error?.message.contains("x\\xff\\x80") == true)
    }

    @Test func imagesThatNeedAnyOrderRefusePipes() throws {
        try #require(mkfifo(path("pipe").string, 0o600) == 0)
        for place in [path("pipe"), "/dev/stderr"] as [FilePath] {
            let error = #expect(throws: GuestError.self) { try ImageFile(creating: place) }
            #expect(error?.message.contains("written sequentially") == true)
        }
    }
}
