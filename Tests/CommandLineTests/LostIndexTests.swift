import Foundation
import Testing
import VarveTestSupport

/// The index is removed while a command writes: the command's data is durable, and it says so.
@Suite(.enabled(if: Tool.isBuilt)) struct LostIndexTests {
    private let directory = TemporaryDirectory()

    private func path(_ name: String) -> String { directory.path.appending(name).string }

    /// Changes to the index while a command has it open.
    @Test(arguments: ["rm -rf store/index", "mv store/index aside", "rm store/index/*"])
    func whatWasStoredIsThere(event: String) throws {
        var random = TestSeed.generator(640)
        let image = Images.make(pages: 600, &random)
        try image.write(to: URL(fileURLWithPath: path("image")))
        let result = try Tool.shell(
            """
            $varve init store >/dev/null && $varve import store image --lineage first || exit 9
            { head -c 1048576 image; n=0
            while ! test -e store/index/open && test $n -lt 200; do sleep 0.05; n=$((n+1)); done
            \(event) || exit 9; tail -c +1048577 image; } | \
            $varve import store - --lineage web --accept-guest-change
            """, in: directory.path.string)
        #expect(result.status == 0, "\(event): \(result.error)")
        #expect(result.text.contains(" web: "), "\(result.text)")
        #expect(result.error.split(separator: "\n").count <= 1, "\(result.error)")
        let next = try Tool.shell(
            "$varve log store && $varve import store image --lineage web && $varve verify store",
            in: directory.path.string)
        #expect(next.status == 0 && next.text.contains("web"), "\(next.error)")
        #expect(try Tool.run("export", path("store"), "web~1", "-").output == image)
    }
}
