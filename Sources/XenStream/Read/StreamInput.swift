import GuestModel

/// The bytes of a stream, read in order through one buffer of 1 MiB.
///
/// Every view lies in the buffer; nothing is allocated for a length that the stream states.
struct StreamInput: ~Copyable {
    /// The most bytes that one view can show.
    static let viewByteCountMax = 1 << 20

    private var source: (UnsafeMutableRawBufferPointer) throws -> Int
    private let memory = PageMemory.allocate(byteCount: StreamInput.viewByteCountMax)
    private var start = 0
    private var end = 0
    private var isAtEnd = false
    /// Bytes taken so far.
    private(set) var offset: UInt64 = 0

    /// - Parameter source: fills a buffer from the current position; returns the byte count, 0 at
    ///   the end. It may return fewer bytes than there is room for.
    init(source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int) {
        self.source = source
    }

    deinit {
        PageMemory.deallocate(memory)
    }

    /// Continues reading from another source; buffered bytes are kept.
    mutating func read(from source: @escaping (UnsafeMutableRawBufferPointer) throws -> Int) {
        self.source = source
        isAtEnd = false
    }

    /// Bytes in the buffer.
    private var available: Int { end - start }

    /// Shows the next bytes without taking them: at least `count`, or all that the stream has.
    ///
    /// The view is valid until the next call.
    mutating func view(atLeast count: Int) throws -> UnsafeRawBufferPointer {
        precondition(count <= memory.count, "a view fits in the buffer")
        while available < count && !isAtEnd {
            if memory.count - start < count {
                memory.copyMemory(from: UnsafeRawBufferPointer(rebasing: memory[start..<end]))
                end -= start
                start = 0
            }
            let room = UnsafeMutableRawBufferPointer(rebasing: memory[end...])
            let read = try source(room)
            precondition(read >= 0 && read <= room.count, "a source fills the buffer it is given")
            isAtEnd = read == 0
            end += read
        }
        return UnsafeRawBufferPointer(rebasing: memory[start..<end])
    }

    /// Takes bytes that a view has shown.
    mutating func take(_ count: Int) {
        precondition(count <= available, "only what was shown can be taken")
        start += count
        offset += UInt64(count)
        if start == end {
            start = 0
            end = 0
        }
    }

    /// Shows exactly `count` bytes and takes them.
    ///
    /// - Parameter record: what they belong to, for the error if they are missing.
    mutating func next(_ count: Int, of record: String) throws -> UnsafeRawBufferPointer {
        let view = try view(atLeast: count)
        guard view.count >= count else {
            throw XenStreamError(endAt: offset + UInt64(view.count), in: record)
        }
        take(count)
        return UnsafeRawBufferPointer(rebasing: view[..<count])
    }

    /// Reads bytes into an array that grows as they arrive, so that a false length costs nothing.
    mutating func bytes(_ count: Int, of record: String) throws -> [UInt8] {
        var result: [UInt8] = []
        while result.count < count {
            let piece = min(count - result.count, 1 << 16)
            result.append(contentsOf: try next(piece, of: record))
        }
        return result
    }
}
