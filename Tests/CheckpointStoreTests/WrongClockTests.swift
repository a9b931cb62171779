import Testing
import VarveTestSupport

@testable import CheckpointStore
@testable import CheckpointUpkeep

/// Retention where the clock was wrong when checkpoints were taken, or is wrong now.
@Suite struct WrongClockTests {
    private typealias Fact = RetentionPolicy.Fact

    private static let second: Int64 = 1_000_000_000
    private static let hour = 3600 * second
    private static let day = 24 * hour
    /// 1 March 2026, 12:00 UTC.
    private static let noon: Int64 = 1_772_366_400 * second
    /// 1 January 2040.
    private static let farAhead: Int64 = 2_208_988_800 * second

    /// Rules of each kind that uses the time.
    private static let policies = [
        RetentionPolicy(keepWithin: .seconds(7200)), RetentionPolicy(keepHourly: 3),
        RetentionPolicy(keepDaily: 2), RetentionPolicy(keepMonthly: 1),
        RetentionPolicy(keepLast: 2, keepMinutely: 5),
    ]

    /// The times that are kept, oldest first.
    private func kept(_ policy: RetentionPolicy, _ times: [Int64], now: Int64) -> [Int] {
        let facts = times.map { Fact(timeNanoseconds: $0, label: nil) }
        let verdicts = policy.decide(facts, now: now)
        return verdicts.indices.filter { !verdicts[$0].reasons.isEmpty }
    }

    private func doubts(_ times: [Int64], now: Int64) -> [TimeDoubt?] {
        CheckpointTimes(times, now: now).findings.map(\.doubt)
    }

    @Test(arguments: policies) func oneTimeInTheFutureForgetsNoOther(_ policy: RetentionPolicy) {
        let times = (0..<20).map { Self.noon + $0 * Self.hour / 2 }
        let now = times[19] + Self.second
        for place in 0...times.count {
            var (right, wrong) = (times, times)
            let before = place > 0 ? times[place - 1] : times[0] - Self.hour / 2
            right.insert(before + Self.hour / 4, at: place)
            wrong.insert(Self.farAhead, at: place)
            #expect(
                doubts(wrong, now: now).indices.filter {
                    doubts(wrong, now: now)[$0] == .future
                } == [place])
            // At the end the checkpoint is taken a quarter of an hour after the last one.
            let present = now + (place == times.count ? Self.hour / 4 : 0)
            let expected = kept(policy, right, now: present)
            let found = kept(policy, wrong, now: present)
            #expect(Set(found).isSuperset(of: expected), "\(policy) with it at \(place)")
        }
    }

    @Test func aClockThatWasAheadForAWhilePutsOnlyItsOwnTimesInDoubt() {
        let before = (0..<10).map { Self.noon + $0 * Self.hour }
        let ahead = (0..<5).map { Self.farAhead + $0 * Self.hour }
        let after = (15..<20).map { Self.noon + $0 * Self.hour }
        let times = before + ahead + after
        let now = after[4]
        let expected =
            [TimeDoubt?](repeating: nil, count: 10) + [.future, .future, .future]
            + [.future, .future] + [TimeDoubt?](repeating: nil, count: 5)
        #expect(doubts(times, now: now) == expected)
        let policy = RetentionPolicy(keepWithin: .seconds(6 * 3600))
        // Checkpoints just before the first right time might be as young as that.
        #expect(kept(policy, times, now: now) == Array(10..<20))
        // Their position in the order tells that they are older than what the rules keep.
        let later = times + (20..<40).map { Self.noon + $0 * Self.hour }
        #expect(kept(policy, later, now: later[39]) == Array(33..<40))
    }

    @Test(arguments: policies) func aClockThatIsAheadNowForgetsNothingOlder(
        _ policy: RetentionPolicy
    ) {
        let times = (0..<20).map { Self.noon + $0 * Self.hour / 2 }
        let before = kept(policy, times, now: times[19])
        // The clock jumps to 2040 and continues there: nothing in the times tells that it is wrong.
        var ahead = times
        for count in 1..<10 {
            ahead.append(Self.farAhead + Int64(count) * Self.day)
            let found = Set(kept(policy, ahead, now: ahead[ahead.count - 1]))
            let timed = before.filter { policy.keepLast == 0 || $0 < 18 }
            #expect(found.isSuperset(of: timed), "\(policy) after \(count)")
            #expect(found.contains(ahead.count - 1))
        }
        let facts = ahead.map { Fact(timeNanoseconds: $0, label: nil) }
        let verdicts = policy.decide(facts, now: ahead[ahead.count - 1])
        #expect(verdicts.map(\.isBeforeClockJump) == ahead.map { $0 < Self.farAhead })
    }

    @Test(arguments: policies) func aClockThatBeganAt1970ForgetsNothingOlder(
        _ policy: RetentionPolicy
    ) {
        let times = (0..<20).map { Self.noon + $0 * Self.hour / 2 }
        var (right, wrong) = (times, times)
        func check() {
            let expected = kept(policy, right, now: right[right.count - 1])
            let found = kept(policy, wrong, now: wrong[wrong.count - 1])
            #expect(Set(found).isSuperset(of: expected), "\(policy) after \(wrong.count)")
        }
        for minute: Int64 in 1..<6 {
            right.append(times[19] + minute * 60 * Self.second)
            wrong.append(minute * 60 * Self.second)
            // While the clock says 1970 all others are in the future.
            #expect(
                doubts(wrong, now: wrong[wrong.count - 1]).prefix(20).allSatisfy { $0 == .future })
            check()
        }
        for hour: Int64 in 1..<6 {
            right.append(times[19] + hour * Self.hour)
            wrong.append(times[19] + hour * Self.hour)
            // After the clock is corrected, only the times from 1970 are in doubt.
            let doubted = doubts(wrong, now: wrong[wrong.count - 1])
            #expect(doubted.indices.filter { doubted[$0] != nil } == Array(20..<25))
            check()
        }
    }

    /// A step back among plausible times: it is unknown which side is wrong.
    @Test func aStepBackPutsBothSidesInDoubtUntilTheyAreTooOldInAnyCase() {
        let before = (0..<10).map { Self.noon + $0 * 60 * Self.second }
        let after = (0..<10).map { Self.noon + ($0 * 60 - 600) * Self.second }
        let times = before + after
        let policy = RetentionPolicy(keepWithin: .seconds(300))
        let now = Self.noon + Self.hour
        #expect(doubts(times, now: now).allSatisfy { $0 == .outOfOrder })
        #expect(kept(policy, times, now: now) == Array(times.indices))
        // Five minutes after the first time that is certainly right they are removed.
        let right = times + (0..<5).map { now + $0 * 100 * Self.second }
        #expect(kept(policy, right, now: right[24]) == Array(21..<25))
        // A small step is a small doubt: what was taken before it is certain.
        let small = [Self.noon, Self.noon + 10, Self.noon + 30, Self.noon + 20, Self.noon + 40]
        #expect(
            doubts(small, now: now) == [nil, nil, .outOfOrder, .outOfOrder, nil])
    }

    @Test func rulesThatDoNotLookAtTheTimeHaveNoDoubt() {
        let times = [Self.farAhead, 5, Self.noon, Self.noon - 7, Self.farAhead + 1]
        #expect(kept(RetentionPolicy(keepLast: 2), times, now: Self.noon) == [3, 4])
    }

    /// Compared with a plain reading: with some clocks wrong, nothing is removed that is kept with
    /// right clocks.
    @Test func nothingGoesThatRightClocksWouldKeep() {
        var random = TestSeed.generator(952)
        var tried = 0
        for _ in 0..<400 {
            var right: [Int64] = []
            var time = Self.noon
            for _ in 0..<60 {
                time += Int64.random(in: 1...40, using: &random) * 60 * Self.second
                right.append(time)
            }
            let now = time + Self.second
            // Periods during which the clock was wrong by anything from a second to decades; the
            // newest has the right time.
            var wrong = right
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let first = Int.random(in: 0..<59, using: &random)
                let end = Int.random(in: first + 1...59, using: &random)
                let size: Int64 =
                    [10, 4000, 90_000, 40_000_000, 900_000_000]
                    .randomElement(using: &random) ?? 1
                let offset = Int64.random(in: -size...size, using: &random) * Self.second
                for index in first..<end { wrong[index] = right[index] + offset }
            }
            // A clock that was slightly wrong in a way that no order shows cannot be detected.
            let found = CheckpointTimes(wrong, now: now).findings
            guard found.indices.allSatisfy({ found[$0].doubt != nil || wrong[$0] == right[$0] })
            else { continue }
            tried += 1
            let within = Int.random(in: 60...100_000, using: &random)
            let count = Int.random(in: 1...9, using: &random)
            let policy =
                [
                    RetentionPolicy(keepWithin: .seconds(within)),
                    RetentionPolicy(keepLast: 3, keepHourly: count),
                    RetentionPolicy(keepWithin: .seconds(within / 9), keepMinutely: count),
                    RetentionPolicy(keepDaily: count),
                ].randomElement(using: &random) ?? RetentionPolicy(keepHourly: 1)
            let expected = kept(policy, right, now: now)
            #expect(
                Set(kept(policy, wrong, now: now)).isSuperset(of: expected),
                "\(wrong) instead of \(right), \(policy)")
        }
        #expect(tried > 50, "\(tried) cases")
    }

    @Test func timesAtTheEdgesAreTakenAsTheyAre() {
        let edges: [Int64] = [.min, -1, 0, 1, Self.noon, .max]
        for now in edges {
            for policy in Self.policies {
                let all = kept(policy, edges, now: now)
                let backwards = kept(policy, edges.reversed(), now: now)
                #expect(!all.isEmpty && !backwards.isEmpty)
            }
        }
    }
}
