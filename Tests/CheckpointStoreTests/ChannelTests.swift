import Glibc
import PackStore
import Synchronization
import Testing

@Suite struct ChannelTests {
    @Test func elementsArriveInOrderAndThenTheEnd() {
        let channel = Channel<Int>()
        for value in 0..<3 { channel.send(value) }
        channel.send(contentsOf: 3..<6)
        channel.close()
        var received: [Int] = []
        while let value = channel.receive() { received.append(value) }
        #expect(received == Array(0..<6))
        #expect(channel.receive() == nil)
    }

    /// What was taken is the receiver's alone: the memory of a slot must return to its pool.
    @Test func aTakenElementIsNotKept() {
        final class Slot: Sendable {}
        let channel = Channel<Slot>()
        weak var received: Slot?
        weak var removed: Slot?
        for _ in 0..<3 { channel.send(Slot()) }
        do {
            let slot = channel.receive()
            received = slot
            let next = channel.peek()
            removed = next
            channel.removeFirst()
        }
        #expect(received == nil && removed == nil)
        #expect(channel.count == 1)
    }

    @Test func eachElementGoesToOneReceiver() throws {
        let channel = Channel<Int>(capacity: 3)
        let received = Mutex<[Int]>([])
        let receivers = try (0..<3).map { _ in
            try Threads.Thread {
                while let value = channel.receive() { received.withLock { $0.append(value) } }
            }
        }
        for value in 0..<1000 { channel.send(value) }
        channel.close()
        for receiver in receivers { receiver.join() }
        #expect(received.withLock { $0.sorted() } == Array(0..<1000))
    }

    @Test(.timeLimit(.minutes(1))) func closingWakesReceivers() throws {
        let channel = Channel<Int>()
        let receivers = try (0..<2).map { _ in
            try Threads.Thread { #expect(channel.receive() == nil) }
        }
        let peeking = try Threads.Thread { #expect(channel.peek() == nil) }
        channel.close()
        for receiver in receivers { receiver.join() }
        peeking.join()
    }

    /// A sender goes on only when an element has left.
    @Test func aFullChannelBlocksItsSender() throws {
        let channel = Channel<Int>(capacity: 2)
        let sentCount = Atomic(0)
        let sender = try Threads.Thread {
            for value in 0..<5 {
                channel.send(value)
                sentCount.add(1, ordering: .sequentiallyConsistent)
            }
        }
        for value in 0..<3 {
            while sentCount.load(ordering: .sequentiallyConsistent) < 2 + value { usleep(100) }
            // Time for a sender that is not held up to send more.
            usleep(20_000)
            #expect(sentCount.load(ordering: .sequentiallyConsistent) == 2 + value)
            #expect(channel.count == 2)
            #expect(channel.receive() == value)
        }
        sender.join()
        #expect(channel.receive() == 3)
        #expect(channel.receive() == 4)
    }

    /// An element that is only looked at keeps its place.
    @Test func anElementAtWorkKeepsItsPlace() throws {
        let channel = Channel<Int>(capacity: 1)
        let left = Mutex(false)
        channel.send(7)
        #expect(channel.peek() == 7)
        #expect(channel.peek() == 7)
        let waiting = try Threads.Thread {
            channel.waitUntilEmpty()
            #expect(left.withLock { $0 })
            channel.send(8)
        }
        left.withLock { $0 = true }
        channel.removeFirst()
        waiting.join()
        #expect(channel.receive() == 8)
    }
}
