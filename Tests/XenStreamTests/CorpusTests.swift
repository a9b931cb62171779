import Foundation
import Testing
import VarveTestSupport
import XenStream

/// The fuzzer's seed streams, and its findings: each is read in every run.
@Suite struct CorpusTests {
    /// Creates the seeds, which are stored so that their bytes never change.
    private static var seeds: [String: [UInt8]] {
        var result: [String: [UInt8]] = [:]
        for (index, wrapper) in StreamMaker.Wrapper.allCases.enumerated() {
            for isPV in [true, false] {
                var random = SeededGenerator(seed: UInt64(900 + index))
                let name = "\(wrapper)-\(isPV ? "pv" : "hvm")"
                result["\(name)-plain"] =
                    StreamMaker.guest(
                        isPV: isPV, wrapper: wrapper, version: index % 2 == 0 ? 2 : 3,
                        epochCount: 0, pageCount: 2, &random
                    ).bytes
                guard wrapper != .xenopsd, !isPV else { continue }
                result["\(name)-remus"] =
                    StreamMaker.guest(
                        isPV: isPV, wrapper: wrapper, epochCount: 2, pageCount: 3, &random
                    ).bytes
            }
        }
        return result
    }

    private static func folder() throws -> URL {
        try #require(Bundle.module.resourceURL).appendingPathComponent("Corpus")
    }

    /// RECORD_GOLDEN=DIRECTORY writes the seeds again instead.
    @Test func theSeedsAreInTheCorpus() throws {
        let target = ProcessInfo.processInfo.environment["RECORD_GOLDEN"]
        for (name, bytes) in CorpusTests.seeds {
            if let target {
                try Data(bytes).write(to: URL(fileURLWithPath: target).appendingPathComponent(name))
                continue
            }
            let file = try CorpusTests.folder().appendingPathComponent(name)
            #expect(try [UInt8](Data(contentsOf: file)) == bytes, "\(name)")
        }
    }

    @Test func everyFileIsReadOrRefused() throws {
        let folder = try CorpusTests.folder()
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.path)
        var whole = 0
        for name in names {
            let bytes = [UInt8](try Data(contentsOf: folder.appendingPathComponent(name)))
            guard let format = bytes.withUnsafeBytes({ XenStreamFormat(detecting: $0) }) else {
                continue
            }
            do {
                let (collector, _) = try read(bytes, as: format, pieceByteCountMax: 4093)
                let epoch = try #require(collector.epochs.last)
                let (again, _) = try read(try write(epoch, as: .libxc), as: .libxc)
                #expect(again.epochs.last?.pages == epoch.pages, "\(name)")
                whole += 1
            } catch let error as XenStreamError {
                #expect(error.code != .noState, "\(name)")
            }
        }
        #expect(whole >= CorpusTests.seeds.keys.filter { $0.hasSuffix("plain") }.count)
    }
}
