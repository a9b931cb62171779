import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import SystemPackage
import Testing
import VarveTestSupport

@testable import CheckpointEngine

/// Every option at its limits: an invalid value is an error that names the option, not a trap.
@Suite struct OptionTests {
    private let directory = TemporaryDirectory(inMemory: true)

    private struct Case: Sendable {
        let name: String
        let set: @Sendable (inout CaptureOptions) -> Void
    }

    private static func cases<T: Sendable>(
        _ name: String, _ path: any WritableKeyPath<CaptureOptions, T> & Sendable, _ values: [T]
    ) -> [Case] {
        values.map { value in Case(name: name) { $0[keyPath: path] = value } }
    }

    private static let levels = [Int32.min + 1, -131_073, 20, .max].map {
        CompressionLevel(rawValue: $0)
    }

    private static func keeping(_ change: (inout Retention) -> Void) -> Retention? {
        var retention = Retention(RetentionPolicy(keepLast: 1))
        change(&retention)
        return retention
    }

    private static let hugeDuration = Duration(secondsComponent: .max, attosecondsComponent: 0)

    private static let refused: [Case] =
        cases("poolByteCount", \.poolByteCount, [.min, -1, 0, 1 << 40 + 1, .max])
        + cases("pauseBudget", \.pauseBudget, [.seconds(-1), .nanoseconds(-1), hugeDuration])
        + cases("precopyRoundsMax", \.precopyRoundsMax, [.min, -1, .max])
        + cases("overlappingCapturesMax", \.overlappingCapturesMax, [.min, -1, 0, .max])
        + cases("workerCount", \.workerCount, [.min, -1, 0, 1025, .max])
        + cases("auditPageCount", \.auditPageCount, [.min, -1, .max])
        + cases("compression", \.compression, levels)
        + cases(
            "compressionRange", \.compressionRange,
            levels.suffix(2).map { .standard...$0 } + levels.prefix(2).map { $0 ... .standard })
        + cases(
            "retention", \.retention,
            [Retention(RetentionPolicy()), Retention(RetentionPolicy(keepLast: 0))])
        + cases("keepLast", \.retention, [keeping { $0.policy.keepLast = -1 }])
        + cases("keepMonthly", \.retention, [keeping { $0.policy.keepMonthly = .min }])
        + cases(
            "keepWithin", \.retention,
            [.seconds(-1), hugeDuration].map { time in keeping { $0.policy.keepWithin = time } })
        + cases(
            "interval", \.retention,
            [.seconds(-1), hugeDuration].map { time in keeping { $0.interval = time } })
        + cases(
            "unusedPercentMax", \.retention,
            [-0.1, 100.1, .nan, .infinity, -.infinity].map { share in
                keeping { $0.unusedPercentMax = share }
            })

    @Test func whatCannotBeIsRefusedByName() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        for refused in OptionTests.refused {
            var options = CaptureOptions()
            refused.set(&options)
            let attempts: [() throws -> Void] = [
                {
                    _ = try CaptureSession(
                        of: guest, in: repository, lineage: "web", options: options)
                },
                {
                    _ = try repository.importImage(lineage: "web", options: options) {
                        _ in 0
                    }
                },
                { _ = try StreamImport(into: repository, lineage: "web", options: options) },
            ]
            for attempt in attempts {
                let error = #expect(throws: CheckpointError.self) { try attempt() }
                #expect(error?.code == .invalidOption, "\(refused.name)")
                #expect(error?.message.contains(refused.name) == true, "\(error?.message ?? "")")
            }
        }
    }

    /// The valid side of each limit.
    @Test func whatCanBeIsTaken() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let taken: [Case] =
            OptionTests.cases("poolByteCount", \.poolByteCount, [1, 5 << 20])
            + OptionTests.cases("pauseBudget", \.pauseBudget, [.zero, .seconds(3600)])
            + OptionTests.cases("precopyRoundsMax", \.precopyRoundsMax, [0, 1_000_000])
            + OptionTests.cases("overlappingCapturesMax", \.overlappingCapturesMax, [1, 1024])
            + OptionTests.cases("workerCount", \.workerCount, [1, 64])
            + OptionTests.cases("auditPageCount", \.auditPageCount, [0, 1 << 20])
            + OptionTests.cases(
                "compression", \.compression,
                [Int32.min, -1, -131_072, 0, 19].map { CompressionLevel(rawValue: $0) })
            + OptionTests.cases(
                "retention", \.retention,
                [
                    OptionTests.keeping { $0.policy.keepLast = .max },
                    OptionTests.keeping { $0.policy.keepWithin = OptionCheck.longest },
                    OptionTests.keeping { $0.interval = OptionCheck.longest },
                    OptionTests.keeping { $0.unusedPercentMax = 100 },
                ])
        for (number, taken) in taken.enumerated() {
            var options = CaptureOptions()
            options.poolByteCount = 4 << 20
            options.workerCount = 1
            taken.set(&options)
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: 300))
            guest.with { $0.write(3, [UInt8](repeating: UInt8(number + 1), count: Page.byteCount)) }
            let session = try CaptureSession(
                of: guest, in: repository, lineage: LineageName("web\(number)"), options: options)
            _ = try session.capture()
            guest.with { $0.write(4, [UInt8](repeating: UInt8(number + 1), count: Page.byteCount)) }
            #expect(try session.capture().checkpoint.changedPageCount == 1, "\(taken.name)")
            session.close()
        }
        #expect(try repository.verify().isClean)
    }

    @Test func schedulesAndOtherOptions() throws {
        let repository = try Repository.create(at: directory.path.appending("store"))
        let guest = SimulatedGuest(layout: GuestLayout(pageCount: 4))
        let session = try CaptureSession(of: guest, in: repository, lineage: "web")
        func refuses(_ name: String, _ change: (inout CheckpointSchedule) -> Void) {
            var schedule = CheckpointSchedule(every: .zero)
            schedule.countMax = 1
            change(&schedule)
            let error = #expect(throws: CheckpointError.self) {
                try PeriodicCapture(of: session, schedule) { _ in .stop }
            }
            #expect(error?.code == .invalidOption && error?.message.contains(name) == true)
        }
        for time in [.seconds(-1), OptionTests.hugeDuration] as [Duration] {
            refuses("interval") { $0.interval = time }
            refuses("timeMax") { $0.timeMax = time }
        }
        refuses("countMax") { $0.countMax = -1 }
        for share in [-0.1, 100.1, .nan, .infinity] {
            let error = #expect(throws: RepositoryError.self) {
                try repository.planPrune(PruneOptions(unusedPercentMax: share))
            }
            #expect(error?.code == .invalidOption)
        }
        for share in [-0.1, 1.1, .nan, .infinity] {
            let error = #expect(throws: RepositoryError.self) {
                try repository.verify(.sample(share: share, seed: 1))
            }
            #expect(error?.code == .invalidOption)
        }
        let error = #expect(throws: RepositoryError.self) {
            try RetentionKeeper(Retention(RetentionPolicy()), of: repository, lineage: "web")
        }
        #expect(error?.code == .invalidOption)
    }
}
