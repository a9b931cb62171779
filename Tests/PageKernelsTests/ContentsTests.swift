import CPageKernels
import GuestModel
import Testing
import VarveTestSupport

extension KernelTests {
    /// Oracles for the kernels that examine and copy bytes: over all alignments and lengths up to a
    /// few vectors, and over pages.
    @Suite(.serialized) struct ContentsTests {
        private static let alignments = 0..<33
        private static let lengths = Array(0...200) + [255, 256, 257, 511, 513, 1024, 4095, 4096]
        private static let room = 4096 + 128

        @Test(arguments: Paths.all)
        func zeroTestAgreesWithLooking(path: String) {
            Paths.with(path) {
                var random = TestSeed.generator(11)
                var bytes = [UInt8](repeating: 0, count: ContentsTests.room)
                for start in ContentsTests.alignments {
                    for length in ContentsTests.lengths {
                        // All zero except for the bytes around it.
                        for index in bytes.indices { bytes[index] = 1 }
                        for index in start..<start + length { bytes[index] = 0 }
                        #expect(ContentsTests.isZero(bytes, start, length), "\(start) \(length)")
                        guard length > 0 else { continue }
                        let place = start + Int.random(in: 0..<length, using: &random)
                        bytes[place] = 1 << UInt8.random(in: 0..<8, using: &random)
                        #expect(
                            !ContentsTests.isZero(bytes, start, length),
                            "\(start) \(length) \(place)")
                    }
                }
            }
        }

        private static func isZero(_ bytes: [UInt8], _ start: Int, _ length: Int) -> Bool {
            bytes.withUnsafeBytes { buffer in
                ckernels_is_zero(buffer.baseAddress.map { $0 + start }, length)
            }
        }

        @Test(arguments: Paths.all)
        func compareAgreesWithLooking(path: String) {
            Paths.with(path) {
                var random = TestSeed.generator(12)
                let left = ContentsTests.randomBytes(&random)
                for start in ContentsTests.alignments {
                    for length in ContentsTests.lengths {
                        let other = Int.random(in: ContentsTests.alignments, using: &random)
                        var right = ContentsTests.randomBytes(&random)
                        for index in 0..<length { right[other + index] = left[start + index] }
                        #expect(
                            ContentsTests.isEqual(left, start, right, other, length),
                            "\(start) \(other) \(length)")
                        guard length > 0 else { continue }
                        let place = Int.random(in: 0..<length, using: &random)
                        right[other + place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                        #expect(
                            !ContentsTests.isEqual(left, start, right, other, length),
                            "\(start) \(other) \(length) \(place)")
                    }
                }
            }
        }

        private static func isEqual(
            _ left: [UInt8], _ start: Int, _ right: [UInt8], _ other: Int, _ length: Int
        ) -> Bool {
            left.withUnsafeBytes { left in
                right.withUnsafeBytes { right in
                    ckernels_is_equal(
                        left.baseAddress.map { $0 + start }, right.baseAddress.map { $0 + other },
                        length)
                }
            }
        }

        @Test(arguments: Paths.all)
        func streamCopyCopiesThatAndNoMore(path: String) {
            Paths.with(path) {
                var random = TestSeed.generator(13)
                let source = ContentsTests.randomBytes(&random)
                for start in ContentsTests.alignments {
                    for length in ContentsTests.lengths {
                        let other = Int.random(in: ContentsTests.alignments, using: &random)
                        var target = [UInt8](repeating: 0x55, count: ContentsTests.room)
                        source.withUnsafeBytes { from in
                            target.withUnsafeMutableBytes { to in
                                ckernels_stream_copy(
                                    to.baseAddress.map { $0 + other },
                                    from.baseAddress.map { $0 + start }, length)
                            }
                        }
                        var expected = [UInt8](repeating: 0x55, count: ContentsTests.room)
                        expected.replaceSubrange(
                            other..<other + length, with: source[start..<start + length])
                        #expect(target == expected, "\(start) \(other) \(length)")
                    }
                }
            }
        }

        @Test(arguments: Paths.all)
        func streamCopyOfPiecesLeavesNoGap(path: String) {
            Paths.with(path) {
                var random = TestSeed.generator(14)
                let source = ContentsTests.randomBytes(&random)
                for count in 0..<20 {
                    let ranges = (0..<count).map { _ in
                        let start = Int.random(in: 0..<1000, using: &random)
                        return start..<start + Int.random(in: 0..<700, using: &random)
                    }
                    let expected = ranges.flatMap { source[$0] }
                    var target = [UInt8](repeating: 0, count: expected.count)
                    source.withUnsafeBytes { from in
                        let pieces = ranges.map { range in
                            ckernels_piece(
                                from: from.baseAddress.map { $0 + range.lowerBound },
                                length: range.count)
                        }
                        target.withUnsafeMutableBytes {
                            ckernels_stream_copy_pieces($0.baseAddress, pieces, count)
                        }
                    }
                    #expect(target == expected, "\(ranges)")
                }
            }
        }

        private static func randomBytes(_ random: inout some RandomNumberGenerator) -> [UInt8] {
            (0..<room).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        }

        // MARK: - Compressibility

        private static func isIncompressible(_ bytes: [UInt8]) -> Bool {
            bytes.withUnsafeBytes { ckernels_is_incompressible($0.baseAddress, $0.count) }
        }

        @Test(arguments: [1, 2, 4, 8, 16])
        func randomPagesAreIncompressible(pageCount: Int) {
            var random = TestSeed.generator(15)
            for _ in 0..<50 {
                let bytes = (0..<pageCount * Page.byteCount).map { _ in
                    UInt8(truncatingIfNeeded: random.next())
                }
                #expect(ContentsTests.isIncompressible(bytes))
            }
        }

        @Test func whatRepeatsIsCompressible() {
            var random = TestSeed.generator(16)
            let half = (0..<Page.byteCount / 2).map { _ in UInt8(truncatingIfNeeded: random.next())
            }
            #expect(!ContentsTests.isIncompressible(half + half))
        }

        @Test func whatIsUnevenIsCompressible() {
            var random = TestSeed.generator(17)
            // Seven bits a byte; letters; machine words with small values.
            let shapes: [(inout SeededGenerator) -> UInt8] = [
                { UInt8.random(in: 0..<128, using: &$0) },
                { UInt8.random(in: 97...122, using: &$0) },
                { Bool.random(using: &$0) ? 0 : UInt8.random(in: 0...255, using: &$0) },
            ]
            for (number, shape) in shapes.enumerated() {
                let bytes = (0..<16 * Page.byteCount).map { _ in shape(&random) }
                #expect(!ContentsTests.isIncompressible(bytes), "shape \(number)")
            }
        }

        @Test func shortInputsAreLeftToTheCompressor() {
            var random = TestSeed.generator(18)
            let bytes = (0..<1023).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            for count in 0...bytes.count {
                #expect(!ContentsTests.isIncompressible(Array(bytes[..<count])))
            }
        }
    }
}
