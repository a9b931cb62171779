/// A queue from threads to threads, in order, with an end.
///
/// A sender waits while it is full, a receiver while it is empty. A stage that must be known to be
/// at work takes its element with `peek` and gives its place up with `removeFirst` when it is done.
package final class Channel<Element: Sendable>: Sendable {
    private struct State: Sendable {
        // Not a slice, which would keep what was taken from it.
        var elements: [Element] = []
        var isClosed = false
        /// Threads that wait for elements to leave: only then does taking one wake anybody.
        var waitingForRoom = 0

        /// True if a receiver need not wait: there is an element, or there never will be.
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

    /// An empty channel.
    ///
    /// - Parameter capacity: the most elements to hold; without it, sending never blocks.
    package init(capacity: Int = .max) {
        precondition(capacity > 0, "a channel holds at least one element")
        self.capacity = capacity
    }

    /// Elements that it holds now.
    package var count: Int { state.read { $0.elements.count } }

    /// Adds an element; blocks while the channel is full.
    ///
    /// It must not be closed.
    package func send(_ element: Element) {
        waitForRoom { state in
            guard state.elements.count < capacity else { return false }
            state.append(element)
            return true
        }
        state.wake()
    }

    /// Adds several elements at once, whatever the capacity: their receivers are woken once.
    ///
    /// It must not be closed.
    package func send(contentsOf elements: some Sequence<Element>) {
        state.change { state in
            for element in elements { state.append(element) }
        }
    }

    /// Takes the next element; blocks until there is one.
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

    /// Returns the next element and leaves it in its place, which `removeFirst` frees.
    ///
    /// For a channel with a single receiver. Blocks until there is an element.
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

    /// Blocks until every element has left.
    package func waitUntilEmpty() {
        waitForRoom { $0.elements.isEmpty }
    }

    /// Ends the channel after the elements that it holds.
    ///
    /// Harmless when called again.
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
