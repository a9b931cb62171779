import CPageKernels
import Foundation
import Testing
import VarveTestSupport

/// The implementations of the kernels, by the names that VARVE_KERNELS accepts.
enum Paths {
    static let all = ["portable", "sse41", "avx2", "avx512", "neon"]

    /// Runs `body` with an implementation forced, or prints that the processor lacks it.
    static func with(_ path: String, _ body: () throws -> Void) rethrows {
        let before = String(cString: ckernels_path())
        guard ckernels_select(path) else {
            noteSkipped("skipped: this processor has no \(path)")
            return
        }
        defer { _ = ckernels_select(before) }
        #expect(String(cString: ckernels_path()) == path)
        try body()
    }
}

/// Runs the kernels' tests serially: a forced implementation applies to the whole process.
@Suite(.serialized) struct KernelTests {}

extension KernelTests {
    @Suite(.serialized) struct PathTests {
        @Test func theEnvironmentForcesAPath() {
            guard let wanted = ProcessInfo.processInfo.environment["VARVE_KERNELS"] else {
                noteSkipped("skipped: VARVE_KERNELS is not set")
                return
            }
            // Tests that force another implementation restore this one.
            let used = String(cString: ckernels_path())
            Paths.with(wanted) { #expect(used == wanted) }
        }

        @Test func unknownPathIsRefused() {
            #expect(!ckernels_select("abacus"))
            #expect(!ckernels_select(""))
        }
    }
}
