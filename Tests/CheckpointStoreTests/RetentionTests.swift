import CheckpointIndex
import Foundation
import Testing
import VarveTestSupport

@testable import CheckpointStore
@testable import CheckpointUpkeep

/// Retention compared with a plain reading of its rules, with Foundation's calendar.
@Suite struct RetentionTests {
    private typealias Fact = RetentionPolicy.Fact

    private static let calendar: Calendar = {
        var calendar = Calendar(identifier: .iso8601)
        calendar.timeZone = TimeZone(identifier: "UTC") ?? calendar.timeZone
        return calendar
    }()

    /// The decisions for one lineage, newest first; the present is the time of the newest.
    private func decide(_ policy: RetentionPolicy, _ facts: [Fact]) -> [[RetentionPolicy.Reason]] {
        let now = facts.first?.timeNanoseconds ?? 0
        return policy.decide(facts.reversed(), now: now).map(\.reasons).reversed()
    }

    private func time(_ text: String) throws -> Int64 {
        let date = try #require(ISO8601DateFormatter().date(from: text))
        return Int64(date.timeIntervalSince1970) * 1_000_000_000
    }

    @Test func periodsAreThoseOfTheCalendar() throws {
        var random = TestSeed.generator(950)
        for _ in 0..<2000 {
            let first = Int64.random(in: -2_000_000_000...9_000_000_000, using: &random)
            let second = first + Int64.random(in: -3_000_000...3_000_000, using: &random)
            let dates = [first, second].map { Date(timeIntervalSince1970: Double($0)) }
            for (period, component) in [
                (RetentionPolicy.Period.second, Calendar.Component.second), (.minute, .minute),
                (.hour, .hour), (.day, .day), (.week, .weekOfYear), (.month, .month),
            ] {
                let isSame = Self.calendar.isDate(
                    dates[0], equalTo: dates[1], toGranularity: component)
                let numbers = [first, second].map { period.number($0 * 1_000_000_000 + 5) }
                #expect((numbers[0] == numbers[1]) == isSame, "\(period) of \(first), \(second)")
            }
        }
    }

    /// A label that moves keeps one checkpoint, not all that ever had it.
    @Test func aLabelKeepsTheNewestThatHasIt() {
        var policy = RetentionPolicy()
        policy.keepLast = 1
        let labels: [Label?] = ["latest", "latest", nil, "release", "latest", "release"]
        let facts = labels.enumerated().map { Fact(timeNanoseconds: -Int64($0), label: $1) }
        let kept = decide(policy, facts).map { !$0.isEmpty }
        #expect(kept == [true, false, false, true, false, false])
    }

    @Test func theNewestOfEachPeriodStays() throws {
        let facts = try [
            "2026-03-02T12:00:30Z", "2026-03-02T12:00:10Z", "2026-03-02T11:59:59Z",
            "2026-03-01T23:00:00Z", "2026-02-28T10:00:00Z", "2026-02-28T09:00:00Z",
            "2026-01-31T00:00:00Z",
        ].map { Fact(timeNanoseconds: try time($0), label: nil) }
        func kept(_ policy: RetentionPolicy) -> [Int] {
            decide(policy, facts).enumerated().filter { !$0.element.isEmpty }.map(\.offset)
        }
        #expect(kept(RetentionPolicy(keepLast: 2)) == [0, 1])
        #expect(kept(RetentionPolicy(keepSecondly: 3)) == [0, 1, 2])
        #expect(kept(RetentionPolicy(keepMinutely: 2)) == [0, 2])
        #expect(kept(RetentionPolicy(keepHourly: 3)) == [0, 2, 3])
        #expect(kept(RetentionPolicy(keepDaily: 10)) == [0, 3, 4, 6])
        // 1 March 2026 is a Sunday.
        #expect(kept(RetentionPolicy(keepWeekly: 2)) == [0, 3])
        #expect(kept(RetentionPolicy(keepMonthly: 2)) == [0, 4])
        #expect(kept(RetentionPolicy(keepWithin: .seconds(31))) == [0, 1, 2])
        #expect(kept(RetentionPolicy(keepWithin: .zero)) == [0])
        #expect(kept(RetentionPolicy()).isEmpty)
    }

    @Test func reasonsAreAllThatHold() throws {
        let facts = [
            Fact(timeNanoseconds: 5_000_000_000, label: nil),
            Fact(timeNanoseconds: 4_000_000_000, label: "good"),
            Fact(timeNanoseconds: 3_000_000_000, label: nil),
        ]
        let policy = RetentionPolicy(keepLast: 1, keepSecondly: 2, keepHourly: 1)
        #expect(
            decide(policy, facts) == [
                [.last, .period(.second), .period(.hour)], [.label("good"), .period(.second)], [],
            ])
        #expect(RetentionPolicy().isEmpty && !policy.isEmpty)
    }

    /// A lineage that is thinned as it grows keeps what one pass over the whole history would keep.
    @Test func thinningAlongTheWayKeepsTheNewestOfEachPeriod() throws {
        var random = TestSeed.generator(951)
        let policy = RetentionPolicy(keepLast: 5, keepSecondly: 10, keepMinutely: 4)
        var live: [Fact] = []
        var time: Int64 = 0
        for _ in 0..<3000 {
            time += Int64.random(in: 1...900_000_000, using: &random)
            live.insert(Fact(timeNanoseconds: time, label: nil), at: 0)
            let reasons = decide(policy, live)
            live = zip(live, reasons).filter { !$0.1.isEmpty }.map(\.0)
            #expect(live.count <= 19)
        }
        // Ten seconds, and the three of four minutes that do not overlap those.
        #expect(live.count >= 13)
    }
}
