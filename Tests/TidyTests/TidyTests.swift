import Foundation
import Testing
import VarveTestSupport

/// Checks the style rules for every file.
@Suite struct TidyTests {
    private static let root = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    /// Paths relative to the root, of files with these endings.
    private static func files(_ folders: [String], _ endings: [String]) -> [String] {
        folders.flatMap { folder -> [String] in
            let base = root.appendingPathComponent(folder).path
            let paths = FileManager.default.enumerator(atPath: base)?.compactMap { $0 as? String }
            return (paths ?? []).filter { path in
                endings.contains { path.hasSuffix($0) } && !path.contains(".build")
            }.map { "\(folder)/\($0)" }
        }
    }

    private static let code = files(
        ["Sources", "Tests", "Examples", "Benchmarks"], [".swift", ".c", ".h"])

    private static func text(_ path: String) throws -> String {
        try String(contentsOf: root.appendingPathComponent(path), encoding: .utf8)
    }

    private func expectNone(
        _ paths: [String], _ rule: (String, String) -> [String]
    ) throws {
        #expect(!paths.isEmpty, "the rule looks at something")
        for path in paths {
            for problem in rule(try TidyTests.text(path), path) {
                Issue.record("\(path): \(problem)")
            }
        }
    }

    @Test func linesAndFilesAreShort() throws {
        try expectNone(TidyTests.code) { text, _ in TidyRules.lengths(text) }
    }

    @Test func functionsAreShort() throws {
        let swift = TidyTests.code.filter { $0.hasSuffix(".swift") }
        try expectNone(swift) { text, _ in TidyRules.functions(text) }
    }

    @Test func nothingIsLeftToDo() throws {
        let scripts = TidyTests.files(["Scripts"], [""]).filter { !$0.hasSuffix("/") }
        let documents = TidyTests.files(["Sources"], [".md"]) + ["README.md", "CONTRIBUTING.md"]
        try expectNone(TidyTests.code + scripts + documents) { text, _ in TidyRules.words(text) }
    }

    /// `Scripts/test` has both written: what the packages say of their targets.
    private static let packages: String? = {
        if let path = ProcessInfo.processInfo.environment["VARVE_PACKAGES"] { return path }
        noteSkipped(
            "skipped, the table of imports: VARVE_PACKAGES names no folder; use Scripts/test")
        return nil
    }()

    /// Package.swift, the documentation and the imports say the same.
    @Test(.enabled(if: packages != nil))
    func whoImportsWhomIsOneTable() throws {
        let folder = URL(fileURLWithPath: TidyTests.packages ?? "")
        let own = try ModuleTable.described(
            Data(contentsOf: folder.appendingPathComponent("varve.json")))
        let benchmarks = try ModuleTable.dumped(
            Data(contentsOf: folder.appendingPathComponent("benchmarks.json")), in: "Benchmarks")
        let documented = ModuleTable.documented(
            try TidyTests.text("Sources/Varve/Varve.docc/Architecture.md"))
        #expect(own.count > 20 && benchmarks.count > 5 && documented.count > 10)
        for target in own + benchmarks {
            let files = TidyTests.files([target.path], [".swift"])
            #expect(!files.isEmpty, "\(target.name) has no file")
            let imports = try files.reduce(into: Set<String>()) {
                $0.formUnion(ModuleTable.imports(try TidyTests.text($1)))
            }
            for problem in ModuleTable.problems(of: target, importing: imports) {
                Issue.record("\(target.path): \(problem)")
            }
            guard target.path.hasPrefix("Sources/") else { continue }
            #expect(documented[target.name] == imports, "Architecture.md: \(target.name)")
        }
        let modules = own.filter { $0.path.hasPrefix("Sources/") }.map(\.name)
        #expect(Set(documented.keys) == Set(modules))
    }

    @Test func theKernelIsCalledInOnePlace() throws {
        let sources = TidyTests.files(
            [
                "Sources/PackStore", "Sources/LMDBTables", "Sources/CheckpointIndex",
                "Sources/CheckpointStore", "Sources/CheckpointUpkeep", "Sources/GuestDisks",
                "Sources/LinuxGuest",
            ], [".swift"])
        try expectNone(sources) { text, path in TidyRules.kernelCalls(text, file: path) }
    }

    @Test func documentsAreFilled() throws {
        let documents =
            TidyTests.files(["Sources"], [".md"]) + [
                "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
            ]
        try expectNone(documents) { text, _ in TidyRules.markdown(text) }
    }

    /// The code in an article is from a program that is built and run.
    @Test func codeInGuidesIsTheirProgramsCode() throws {
        let swift = try TidyTests.files(["Examples/Guide"], [".swift"])
            .map { try TidyTests.text($0) }.joined()
        for guide in ["FirstCheckpoint", "Concurrency", "AfterACrash", "YourOwnGuest", "Embedding"]
        {
            try expectCode(of: guide, in: "swift", from: swift)
        }
        let c = try ["embed-c/emulator.c", "embed-libxl/toolstack.c"].map {
            try TidyTests.text("Examples/\($0)")
        }.joined()
        try expectCode(of: "Embedding", in: "c", from: c)
    }

    private func expectCode(of guide: String, in language: String, from programs: String) throws {
        let text = try TidyTests.text("Sources/Varve/Varve.docc/\(guide).md")
        let blocks = text.components(separatedBy: "```\(language)\n").dropFirst()
        #expect(!blocks.isEmpty)
        for block in blocks {
            let code = block.components(separatedBy: "```")[0]
            #expect(programs.contains(code), "\(guide) shows code that no program has")
        }
    }

    @Test func namesSaySomething() {
        for path in TidyTests.code {
            #expect(TidyRules.name(path).isEmpty, "\(path)")
        }
    }
}

/// Each rule finds its violations.
@Suite struct TidyRulesTests {
    @Test func findLengths() {
        #expect(TidyRules.lengths(String(repeating: "x", count: 101)).count == 1)
        #expect(TidyRules.lengths(String(repeating: "x\n", count: 601)).count == 1)
        #expect(TidyRules.lengths(String(repeating: "x\n", count: 600)).isEmpty)
    }

    @Test func findLongFunctions() {
        func text(_ count: Int) -> String {
            "    package func f() {\n" + String(repeating: "        x()\n", count: count)
                + "    }\n"
        }
        #expect(TidyRules.functions(text(69)).count == 1)
        #expect(TidyRules.functions(text(68)).isEmpty)
    }

    @Test func findWords() {
        #expect(TidyRules.words("// TO" + "DO: later").count == 1)
        #expect(TidyRules.words("// done").isEmpty)
    }

    @Test func findImports() {
        let text = """
            public import A
            @testable import B
            @_exported public import struct C.Path
            import Glibc
            // import D
            """
        let imports = ModuleTable.imports(text)
        #expect(imports == ["A", "B", "C", "Glibc"])
        let target = PackageTarget(name: "T", path: "T", dependencies: ["A", "B", "E"])
        let problems = ModuleTable.problems(of: target, importing: imports)
        #expect(problems.count == 2)
        #expect(problems.first?.hasPrefix("imports C") == true)
        #expect(problems.last?.hasPrefix("lists E") == true)
    }

    @Test func findTheDocumentedTable() {
        let text = "| module | imports | what |\n|---|---|---|\n| `A` | `B`, `C` | does |\n"
        #expect(ModuleTable.documented(text) == ["A": ["B", "C"]])
    }

    @Test func findKernelCalls() {
        #expect(TidyRules.kernelCalls("    pwrite(1, b, 2, 3)", file: "a/B.swift").count == 1)
        #expect(TidyRules.kernelCalls("    pwrite(1, b, 2, 3)", file: "a/Syscalls.swift").isEmpty)
    }

    @Test func findEmptyDocuments() {
        #expect(TidyRules.markdown("# One\n\n# Two\n").count == 2)
        #expect(TidyRules.markdown("# One\n" + String(repeating: "word ", count: 40)).isEmpty)
    }

    @Test func findNames() {
        #expect(TidyRules.name("Sources/A/FileUtils.swift").count == 1)
        #expect(TidyRules.name("Sources/A/My File.swift").count == 1)
    }
}
