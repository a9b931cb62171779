import Foundation
import Synchronization
import Testing

@testable import GuestDisks

/// Programs that are run to their end.
@Suite struct ProgramTests {
    /// Each writes and ends at about the moment at which it was last seen to be silent.
    @Test func whatAProgramWritesAsItEndsIsRead() {
        let lost = Mutex(0)
        DispatchQueue.concurrentPerform(iterations: 12) { thread in
            for run in 0..<25 {
                let time = "0.0\(18_000 + (thread * 25 + run) * 37 % 6000)"
                var text: [UInt8] = []
                let end = try? Program.run(
                    ["/bin/sh", "-c", "sleep \(time); printf done"], within: .seconds(60)
                ) { text += $0 }
                if end?.status != 0 || text != Array("done".utf8) { lost.withLock { $0 += 1 } }
            }
        }
        #expect(lost.withLock { $0 } == 0)
    }

    /// What a program in the background keeps open is not waited for.
    @Test func anotherProgramsPipeIsNotWaitedFor() throws {
        var text: [UInt8] = []
        let start = ContinuousClock.now
        let end = try Program.run(
            ["/bin/sh", "-c", "sleep 50 & printf done"], within: .seconds(40)
        ) { text += $0 }
        #expect(end.status == 0 && text == Array("done".utf8))
        #expect(ContinuousClock.now - start < .seconds(30))
    }
}
