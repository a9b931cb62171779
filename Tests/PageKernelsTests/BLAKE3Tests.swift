import CPageKernels
import Foundation
import GuestModel
import Testing
import VarveTestSupport

extension KernelTests {
    @Suite(.serialized) struct BLAKE3Tests {
        // The input pattern of BLAKE3's test vectors, byte i = i mod 251, and the output of
        // `b3sum`.
        private static let vectors: [(Int, String)] = [
            (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
            (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
            (63, "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b"),
            (64, "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98"),
            (65, "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee"),
            (1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"),
            (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
            (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
            (2048, "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"),
            (2049, "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"),
            (3072, "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2"),
            (4096, "015094013f57a5277b59d8475c0501042c0b642e531b0a1c8f58d2163229e969"),
            (4097, "9b4052b38f1c5fc8b1f9ff7ac7b27cd242487b3d890d15c96a1c25b8aa0fb995"),
            (8192, "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63"),
            (31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"),
        ]

        private func digest(_ bytes: [UInt8]) -> PageDigest {
            var digest = [UInt8](repeating: 0, count: 32)
            ckernels_blake3(bytes, bytes.count, &digest)
            return PageDigest(bytes: digest)
        }

        private func digests(_ inputs: [[UInt8]]) -> [PageDigest] {
            let length = inputs.first?.count ?? 0
            // One buffer, each input at an odd offset: nothing may rely on alignment.
            var bytes: [UInt8] = []
            for input in inputs { bytes += [0xaa] + input }
            var digests = [UInt8](repeating: 0, count: 32 * inputs.count)
            bytes.withUnsafeBytes { buffer in
                let places = inputs.indices.map { index in
                    buffer.baseAddress.map { $0 + index * (length + 1) + 1 }
                }
                ckernels_blake3_many(places, length, inputs.count, &digests)
            }
            return inputs.indices.map { PageDigest(bytes: digests[(32 * $0)...]) }
        }

        @Test func agreesWithB3sum() {
            for (count, expected) in BLAKE3Tests.vectors {
                let bytes = (0..<count).map { UInt8($0 % 251) }
                #expect(digest(bytes).description == expected, "\(count) bytes")
            }
        }

        @Test(arguments: Paths.all)
        func everyPathAgreesWithOneAtATime(path: String) {
            Paths.with(path) {
                var random = TestSeed.generator(1)
                for length in [0, 1, 40, 63, 64, 65, 1000, 1024, 1025, 2072, 4096, 5000, 9000] {
                    for count in 1...35 {
                        let inputs = (0..<count).map { _ in
                            (0..<length).map { _ in UInt8(truncatingIfNeeded: random.next()) }
                        }
                        #expect(
                            digests(inputs) == inputs.map(digest), "\(count) of \(length) bytes")
                    }
                }
            }
        }

        @Test(arguments: Paths.all)
        func everyPathHasTheKnownAnswers(path: String) {
            Paths.with(path) {
                for (count, expected) in BLAKE3Tests.vectors {
                    let bytes = (0..<count).map { UInt8($0 % 251) }
                    let found = digests([[UInt8]](repeating: bytes, count: 16))
                    #expect(found.allSatisfy { $0.description == expected }, "\(count) bytes")
                }
            }
        }

        @Test func agreesWithDebiansTool() throws {
            let tool = "/usr/bin/b3sum"
            guard FileManager.default.isExecutableFile(atPath: tool) else {
                noteSkipped("skipped: \(tool) is not here; 'apt install b3sum'")
                return
            }
            let directory = TemporaryDirectory()
            var random = TestSeed.generator(3)
            let pages = (0..<40).map { _ in
                (0..<Page.byteCount).map { _ in UInt8(truncatingIfNeeded: random.next()) }
            }
            var paths: [String] = []
            for (number, page) in pages.enumerated() {
                paths.append("\(directory.path)/\(number)")
                try Data(page).write(to: URL(fileURLWithPath: paths[number]))
            }
            let process = Process()
            process.executableURL = URL(fileURLWithPath: tool)
            process.arguments = ["--no-names"] + paths
            let end = try process.runToEnd()
            #expect(end.status == 0)
            let expected = String(decoding: end.output, as: UTF8.self).split(separator: "\n").map(
                String.init)
            for path in Paths.all {
                Paths.with(path) {
                    #expect(digests(pages).map(\.description) == expected, "\(path)")
                }
            }
        }
    }
}

@Suite struct ChecksumTests {
    @Test func hasTheCheckValue() {
        let digits = Array("123456789".utf8)
        #expect(ckernels_crc32c(0, digits, digits.count) == 0xe306_9283)
        #expect(ckernels_crc32c_portable(0, digits, digits.count) == 0xe306_9283)
    }

    @Test func instructionAgreesWithTable() {
        var random = TestSeed.generator(2)
        let bytes = (0..<300).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        bytes.withUnsafeBytes { buffer in
            for start in 0..<16 {
                for end in start..<300 {
                    let part = UnsafeRawBufferPointer(rebasing: buffer[start..<end])
                    let fast = ckernels_crc32c(7, part.baseAddress, part.count)
                    #expect(fast == ckernels_crc32c_portable(7, part.baseAddress, part.count))
                }
            }
        }
    }

    /// Lengths near those that are processed as three parts at a time.
    @Test func longOnesAgreeWithTable() {
        var random = TestSeed.generator(3)
        let bytes = (0..<20_000).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        bytes.withUnsafeBytes { buffer in
            for multiple in 1...6 {
                for difference in -9...9 {
                    let start = Int.random(in: 0..<64, using: &random)
                    let count = multiple * 3072 + difference
                    let part = UnsafeRawBufferPointer(rebasing: buffer[start..<start + count])
                    let fast = ckernels_crc32c(7, part.baseAddress, part.count)
                    #expect(fast == ckernels_crc32c_portable(7, part.baseAddress, part.count))
                }
            }
        }
    }

    @Test func goesOnWhereItStopped() {
        let bytes = (0..<100).map { UInt8($0) }
        let whole = ckernels_crc32c(0, bytes, 100)
        bytes.withUnsafeBytes { buffer in
            let head = ckernels_crc32c(0, buffer.baseAddress, 33)
            let rest = buffer.baseAddress.map { $0 + 33 }
            #expect(ckernels_crc32c(head, rest, 67) == whole)
        }
    }
}

@Suite struct ZeroTests {
    @Test func findsOneByteAnywhere() {
        var pages = [UInt8](repeating: 0, count: 3 * Page.byteCount)
        for position in 0..<Page.byteCount {
            pages[Page.byteCount + position] = 1
            var flags: [UInt8] = [9, 9, 9]
            ckernels_zero_pages(pages, 3, &flags)
            #expect(flags == [1, 0, 1], "byte \(position)")
            pages[Page.byteCount + position] = 0
        }
    }
}
