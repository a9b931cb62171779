import Foundation
import StoreFuzz
import Testing
import VarveTestSupport

/// Runs the fuzzer's targets over its corpus and over mutations of it: none of them traps.
@Suite struct StoreFuzzTests {
    private static let corpus = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .appendingPathComponent("../StoreFuzz/Corpus")

    @Test func theCorpusAndMutationsOfItDoNoHarm() throws {
        let names = try FileManager.default.contentsOfDirectory(atPath: Self.corpus.path).sorted()
        #expect(names.count > 8)
        var random = TestSeed.generator(930)
        for name in names {
            let bytes = [UInt8](try Data(contentsOf: Self.corpus.appendingPathComponent(name)))
            bytes.withUnsafeBytes { StoreFuzz.run($0) }
            for _ in 0..<(TestSeed.isLong ? 5000 : 300) {
                var other = bytes
                for _ in 0..<Int.random(in: 1...4, using: &random) {
                    let place = Int.random(in: 0..<other.count, using: &random)
                    switch Int.random(in: 0..<4, using: &random) {
                    case 0: other.removeSubrange(max(1, place)...)
                    case 1: other.insert(0x80, at: place)
                    default:
                        other[place] =
                            [0, 1, 127, 128, 255, .random(in: 0...255, using: &random)]
                            .randomElement(using: &random) ?? 0
                    }
                }
                other.withUnsafeBytes { StoreFuzz.run($0) }
            }
        }
    }
}
