/// A queue between threads that keeps the order of its elements and can be closed.
///
/// A sender blocks while the channel is full, a receiver while it is empty. A receiver whose
/// element must count as long as it works on it reads the element with `peek`, and removes it with
/// `removeFirst` afterwards.
package final class Channel<Element: Sendable>: Sendable {
    private struct State: Sendable {
        // Not a slice: that would retain the elements that were removed.
        var elements: [Element] = []
        var isClosed = false
        /// The number of threads that wait for room: only then does removing an element wake them.
        var waitingForRoom = 0

        /// True if a receiver need not wait: the channel has an element, or is closed.
        var isReadable: Bool { !elements.isEmpty || isClosed }

        mutating func append(_ element: Element) {
            precondition(!isClosed, "nothing is sent after the end")
            elements.append(element)
        }

        mutating func takeFirst() -> Element? {
            elements.isEmpty ? nil : elements.removeFirst()
        }
    }

    private let capacity: Int
    private let state = Monitor(State())

    /// Creates an empty channel.
    ///
    /// - Parameter capacity: the maximum number of elements; without it, sending never blocks.
    package init(capacity: Int = .max) {
        precondition(capacity > 0, "a channel holds at least one element")
        self.capacity = capacity
    }

    /// The number of elements in the channel.
    package var count: Int { state.read { $0.elements.count } }

    /// Adds an element; blocks while the channel is full.
    ///
    /// The channel must not be closed.
    package func send(_ element: Element) {
        waitForRoom { state in
            guard state.elements.count < capacity else { return false }
            state.append(element)
            return true
        }
        state.wake()
    }

    /// Adds several elements at once, without regard to the capacity, and wakes receivers once.
    ///
    /// The channel must not be closed.
    package func send(contentsOf elements: some Sequence<Element>) {
        state.change { state in
            for element in elements { state.append(element) }
        }
    }

    /// Removes and returns the next element; blocks until there is one.
    ///
    /// - Returns: nil if the channel is closed and empty.
    package func receive() -> Element? {
        let (element, wakes) = state.wait { state -> (Element?, Bool)? in
            guard state.isReadable else { return nil }
            return (state.takeFirst(), state.waitingForRoom > 0)
        }
        if wakes { state.wake() }
        return element
    }

    /// Returns the next element without removing it; blocks until there is one.
    ///
    /// Only for a channel with a single receiver.
    ///
    /// - Returns: nil if the channel is closed and empty.
    package func peek() -> Element? {
        var first: Element?
        state.wait { state -> Void? in
            guard state.isReadable else { return nil }
            first = state.elements.first
            return ()
        }
        return first
    }

    /// Removes the element that `peek` returned.
    package func removeFirst() {
        state.update { state in
            state.elements.removeFirst()
            return state.waitingForRoom > 0
        }
    }

    /// Blocks until the channel has no elements.
    package func waitUntilEmpty() {
        waitForRoom { $0.elements.isEmpty }
    }

    /// Closes the channel: receivers get the elements that it still has, then nil.
    ///
    /// Calling it again has no effect.
    package func close() {
        state.change { $0.isClosed = true }
    }

    private func waitForRoom(_ body: (inout State) -> Bool) {
        var isCounted = false
        state.wait { state -> Void? in
            guard !body(&state) else {
                if isCounted { state.waitingForRoom -= 1 }
                return ()
            }
            if !isCounted { state.waitingForRoom += 1 }
            isCounted = true
            return nil
        }
    }
}
