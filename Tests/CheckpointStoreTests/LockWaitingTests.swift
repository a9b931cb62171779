import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

/// Waiting for another writer; no test measures time.
@Suite struct LockWaitingTests {
    private let directory = TemporaryDirectory(inMemory: true)

    @Test func whoWaitsIsServedWhenTheOtherHasEnded() throws {
        let path = directory.path.appending("store")
        let holder = try Repository.create(at: path)
        let asked = Atomic(0)
        let cancellation = Cancellation(when: {
            // Longer than any default wait.
            if asked.add(1, ordering: .relaxed).newValue == 55 { try? holder.close() }
            return false
        })
        let repository = try Repository.open(
            at: path, .writing, waiting: LockWaiting(atMost: nil), cancellation: cancellation)
        #expect(repository.isWritable && !holder.isWritable)
        #expect(asked.load(ordering: .relaxed) >= 55)
    }

    @Test func waitingEndsByItsTimeOrByRequest() throws {
        let path = directory.path.appending("store")
        let holder = try Repository.create(at: path)
        for waiting in [.none, LockWaiting(atMost: .milliseconds(1100))] {
            let error = #expect(throws: RepositoryError.self) {
                try Repository.open(at: path, .writing, waiting: waiting)
            }
            #expect(error?.code == .locked && error?.message.contains("--wait") == true)
        }
        let asked = Atomic(0)
        let error = #expect(throws: RepositoryError.self) {
            try Repository.open(
                at: path, .writing, waiting: LockWaiting(atMost: nil),
                cancellation: Cancellation(when: {
                    asked.add(1, ordering: .relaxed).newValue >= 3
                }))
        }
        #expect(error?.code == .cancelled && asked.load(ordering: .relaxed) == 3)
        let refused = #expect(throws: RepositoryError.self) {
            try Repository.planRepair(at: path, waiting: LockWaiting(atMost: .seconds(-1)))
        }
        #expect(refused?.code == .invalidOption)
        #expect(holder.isWritable)
    }
}
