import Foundation
import Testing
import VarveTestSupport

/// Messages about closed descriptors, numbers, names and paths, and silence where no one reads.
@Suite(.enabled(if: Tool.isBuilt)) struct WordsTests {
    private let directory = TemporaryDirectory()
    private var root: String { directory.path.string }

    private func shell(_ line: String) throws -> Tool.Result {
        try Tool.shell("cd \"$d\" && { \(line); }; exit $?", ["d": root])
    }

    /// A store with two checkpoints of `web`, of one page each.
    private func makeStore() throws {
        let made = try shell(
            """
            $varve init store && for i in 1 2; do head -c 4096 /dev/urandom >image; \
            $varve import store image --lineage web --label step$i || exit 1; done
            """)
        #expect(made.status == 0, "\(made.error)")
        #expect(made.text.contains("1 of 1 page changed"), "\(made.text)")
    }

    private static let readers = [
        "log store", "log store --json", "show store web", "show store web --json",
        "diff store web~1 web", "diff store web~1 web --json", "stats store", "stats store --json",
        "forget store --keep-last 1 --dry-run", "prune store --dry-run", "--help", "log --help",
        "--version",
    ]

    /// As SIGPIPE would end it, and without a message.
    @Test func whoReadsNoMoreIsToldNothing() throws {
        try makeStore()
        for command in WordsTests.readers {
            // The reader has exited before the command prints.
            let result = try shell(
                """
                mkfifo pipe 2>/dev/null; exec 3<>pipe 4>pipe 3>&-; \
                "\(try #require(Tool.path))" \(command) >&4
                """)
            #expect(result.status == 141 && result.error.isEmpty, "\(command): \(result.error)")
        }
        #expect(try Tool.run("log", "\(root)/store", "--json").objects.count == 2)
    }

    @Test func closedDescriptorsAreNamed() throws {
        try makeStore()
        for command in WordsTests.readers {
            let result = try shell("$varve \(command) >&-")
            #expect(result.status == 1, "\(command)")
            #expect(
                result.error.contains("standard output cannot be written, because it is closed"))
            #expect(result.error.split(separator: "\n").count == 1, "\(result.error)")
        }
        for command in ["import store - --lineage web", "receive store --lineage web"] {
            let result = try shell("$varve \(command) <&-")
            #expect(result.status == 1, "\(command)")
            #expect(result.error.contains("standard input is closed"), "\(result.error)")
            #expect(result.error.split(separator: "\n").count == 1, "\(result.error)")
        }
    }

    @Test func aTemporaryDirectoryThatCannotBeMadeNamesTheVariable() throws {
        try makeStore()
        // Without an index a reader creates one of its own.
        #expect(try shell("rm -r store/index").status == 0)
        for place in ["/nowhere/at/all", "image"] {
            let result = try shell("TMPDIR=\(place) $varve log store")
            #expect(result.status == 1 && result.error.contains("set TMPDIR"), "\(result.error)")
            #expect(result.error.contains(place), "\(result.error)")
            #expect(result.error.split(separator: "\n").count == 1, "\(result.error)")
        }
        // Room for only an empty directory, or for the beginning of an index.
        for size in ["16k", "64k", "100k"] {
            let full = try shell(
                "mkdir -p full && unshare -m sh -c 'mount -t tmpfs -o size=\(size) tmpfs full "
                    + "|| exit 77; TMPDIR=full $varve log store'")
            if full.status == 77 {
                noteSkipped("skipped, a full temporary directory: nothing can be mounted here")
                break
            }
            #expect(full.status == 1 && full.error.contains("set TMPDIR"), "\(full.error)")
            #expect(full.error.contains("No space left"), "\(full.error)")
            #expect(!full.error.contains("store/index"), "\(full.error)")
        }
        #expect(try shell("$varve log store --json").objects.count == 2)
    }

    @Test func aShareMayHaveItsSign() throws {
        try makeStore()
        for share in ["5", "5%", "0", "0%", "12.5%", "100%"] {
            let result = try shell("$varve prune store --dry-run --max-unused \(share)")
            #expect(result.status == 0, "\(share): \(result.error)")
        }
        for share in ["101%", "-1%", "%", "5 %", "nan", "five"] {
            let result = try shell("$varve prune store --dry-run '--max-unused=\(share)'")
            #expect(result.status == 2, "\(share): \(result.error)")
        }
        #expect(try shell("$varve prune --help").text.contains("5 or 5%"))
    }

    /// Two encodings of a letter give two names, wherever names are compared.
    @Test func namesAreComparedByteForByte() throws {
        let (composed, decomposed) = ("caf\u{c5}", "caf\u{212b}")
        #expect(composed == decomposed && !composed.utf8.elementsEqual(decomposed.utf8))
        let made = try shell("$varve init store && head -c 4096 /dev/urandom >image")
        #expect(made.status == 0, "\(made.error)")
        for (lineage, label) in [(composed, "x\u{c5}"), (decomposed, "x\u{212b}")] {
            for _ in 0..<2 {
                let taken = try shell("$varve import store image --lineage \(lineage)")
                #expect(taken.status == 0, "\(taken.error)")
            }
            let labelled = try shell("$varve label store \(lineage) \(label)")
            #expect(labelled.status == 0, "\(labelled.error)")
            #expect(try shell("$varve log store --lineage \(lineage) --json").objects.count == 2)
        }
        // Combining marks are not letters.
        let marked = try shell("$varve import store image --lineage cafe\u{301}")
        #expect(marked.status == 1 && marked.error.contains("NFC"), "\(marked.error)")
        // A label in one encoding is given to another checkpoint, in the other encoding.
        let moved = try shell("$varve label store \(composed) x\u{212b}z --json")
        #expect(moved.status == 0, "\(moved.error)")
        let again = try shell("$varve label store \(composed) x\u{c5}z --json")
        let label = try #require(try again.objects.first?["label"] as? String)
        #expect(label.utf8.elementsEqual("x\u{c5}z".utf8))
        let shown = try shell("$varve show store x\u{c5}z --json")
        #expect(shown.status == 0, "\(shown.error)")
        // The same checkpoint's label in the other encoding is another label.
        #expect(try shell("$varve label store \(composed)~ y\u{c5}").status == 0)
        let respelled = try shell("$varve label store \(composed)~ y\u{212b} --json")
        let other = try #require(try respelled.objects.first?["label"] as? String)
        #expect(other.utf8.elementsEqual("y\u{212b}".utf8))
        #expect(try shell("$varve label store \(composed)~ --remove").status == 0)
        // Each lineage keeps its newest.
        let forgotten = try shell("$varve forget store --keep-last 1 --json")
        #expect(forgotten.status == 0, "\(forgotten.error)")
        for lineage in [composed, decomposed] {
            #expect(try shell("$varve show store \(lineage)").status == 0)
        }
        #expect(try shell("$varve verify store").status == 0)
    }

    @Test func wordsAgreeWithNumbers() throws {
        try makeStore()
        #expect(try shell("$varve diff store web~ web").text.contains("1 page differs, in 1 range"))
        let show = try shell("$varve show store web")
        #expect(show.text.contains("1 page, 1 stored"), "\(show.text)")
        #expect(try shell("$varve show store web~").text == shell("$varve show store web~1").text)
        #expect(try shell("$varve show store step1~").error.contains("goes back 1 checkpoint and"))
        // The checkpoint is removed, and its label with it.
        #expect(try shell("$varve forget store step2").status == 0)
        let gone = try shell("$varve show store step2")
        #expect(gone.status == 1 && gone.error.contains("step2"), "\(gone.error)")
        #expect(try shell("$varve forget --help").text.contains("Labels"))
        #expect(try shell("$varve repair store").text.contains("1 checkpoint whole"))
        let prune = try shell("$varve prune store")
        #expect(prune.text.contains("removed 0 packs"), "\(prune.text)")
        let help = try shell("$varve --help").text
        #expect(help.contains("129") && help.contains("141") && help.contains("NAME~1"))
    }
}
