import Foundation
import Testing
import VarveTestSupport

/// Core dumps of commands that were processing guests' pages do not contain the pages.
@Suite(.serialized, .enabled(if: Tool.isBuilt)) struct CoreDumpTests {
    private static let pageCount = 512
    /// The tool reads the first bytes of an input to detect its format, and documents this.
    private static let lookedAtPageCount = 256
    /// None of the pages may be found; without the separate buffers, all 256 would be.
    private static let straySecretCountMax = 0

    private let directory = TemporaryDirectory()
    private var root: String { directory.path.string }

    private func shell(_ line: String) throws -> Tool.Result {
        try Tool.shell("cd \"$d\" && ulimit -c unlimited && \(line)", ["d": root])
    }

    /// Every other page is random, the others are compressible; each has its own secret.
    private func makeImage(_ name: String, _ random: inout SeededGenerator) throws {
        var image = Data()
        for number in 0..<CoreDumpTests.pageCount {
            var words = (0..<512).map { _ in random.next() }
            if number % 2 == 1 { for index in 64..<512 { words[index] = UInt64(number) } }
            var page = words.withUnsafeBytes { Data($0) }
            let digits = String(random.next() | 1 << 63, radix: 16)
            let name = number < CoreDumpTests.lookedAtPageCount ? "EARLY-" : "SECRET"
            page.replaceSubrange(200..<224, with: Data("\(name)\(digits)AB".utf8.prefix(24)))
            image += page
        }
        try image.write(to: URL(fileURLWithPath: "\(root)/\(name)"))
    }

    /// Kills a command at its n-th call of some kind.
    ///
    /// - Returns: the number of secrets and of labels in its core dump; nil without a core dump.
    private func dump(
        _ command: String, at call: String, _ number: Int
    ) throws -> (secrets: Int, labels: Int, byteCount: Int)? {
        let result = try shell(
            """
            rm -rf core* store; cp -a whole store; strace -f -qq -o /dev/null -e trace=\(call) \
            -e inject=\(call):signal=SIGABRT:when=\(number) \
            \(try #require(Tool.path)) \(command) >/dev/null 2>&1; ls core* >/dev/null 2>&1 || \
            exit 9; cat core* | grep -a -o 'SECRET[0-9a-f]\\{16\\}' | sort -u | wc -l; \
            cat core* | grep -a -c 'CONTROL-LINEAGE-NAME'; cat core* | wc -c; rm -f core*
            """)
        if result.status == 9 { return nil }
        let numbers = result.text.split(separator: "\n").compactMap {
            Int($0.trimmingCharacters(in: .whitespaces))
        }
        try #require(numbers.count == 3, "\(result.text) \(result.error)")
        return (numbers[0], numbers[1], numbers[2])
    }

    @Test func pagesAreNotInACore() throws {
        var random = TestSeed.generator(1402)
        try makeImage("first", &random)
        try makeImage("second", &random)
        let made = try shell(
            """
            $varve init whole && $varve import whole first --lineage CONTROL-LINEAGE-NAME
            """)
        #expect(made.status == 0, "\(made.error)")
        let pattern = try shell("cat /proc/sys/kernel/core_pattern").text
        guard pattern.hasPrefix("core"),
            try shell("strace -qq -o /dev/null -e trace=none true").status == 0
        else {
            noteSkipped("skipped, core dumps: core_pattern is '\(pattern)', or strace is not here")
            return
        }
        var (dumps, controls, most) = (0, 0, 0)
        let name = "CONTROL-LINEAGE-NAME"
        for (command, call, numbers) in [
            ("import store second --lineage \(name)", "pwrite64", [1, 2, 3, 4]),
            ("import store second --lineage \(name)", "fdatasync", [1]),
            ("import store second --lineage \(name)", "futex", [2, 3, 4, 5]),
            ("import store - --lineage \(name) <second", "pwrite64", [1, 2, 3]),
            ("export store \(name) -", "write", [1, 2, 3]),
            ("export store \(name) -", "futex", [1, 2, 3, 4]),
            ("export store \(name) out --force", "pread64", [1, 2, 3]),
            ("verify store", "pread64", [1, 2, 3]), ("verify store", "futex", [1, 2, 3]),
            ("repair store", "pread64", [2, 4, 8, 12]),
            ("repair store", "futex", [2, 4]),
        ] {
            for number in numbers {
                guard let found = try dump(command, at: call, number) else { continue }
                dumps += 1
                most = max(most, found.secrets)
                controls += found.labels > 0 ? 1 : 0
                #expect(
                    found.secrets <= CoreDumpTests.straySecretCountMax,
                    "\(command), \(call) \(number): \(found.secrets) secrets")
            }
        }
        print(
            "\(dumps) cores, with \(most) of 256 pages' secrets at most; \(controls) have a name "
                + "in them, which nothing hides")
        guard dumps > 0 else {
            noteSkipped("skipped, core dumps: none is written here")
            return
        }
        #expect(dumps >= 10)
        #expect(controls >= dumps / 2, "the cores could not be searched")
    }
}
