import GuestModel

// Layout, copies, and the pause.

extension Examination {
    func layoutIsStable() throws {
        for _ in 0..<3 {
            guard try guest.layout() == layout else {
                throw Finding("layout() changes though nothing was added or removed")
            }
        }
        guard try paused({ try guest.layout() }) == layout else {
            throw Finding("layout() differs in the pause")
        }
        guard let writable = guest as? any WritableGuest else { return }
        // The frames of the sample, and some that may not exist.
        var frames = DirtyBitmap()
        for frame in sample { frames.insert(frame) }
        let end = layout.runs.last?.end.rawValue ?? 0
        for distance in 0..<3 as Range<UInt64> { frames.insert(PageFrameNumber(end + distance)) }
        var expected = frames
        expected.formIntersection(DirtyBitmap(layout))
        guard try writable.existing(frames) == expected else {
            throw Finding("existing(_:) returns other frames than those in layout()")
        }
    }

    mutating func copyEqualsMemory() throws {
        for _ in 0..<4 { _ = try write() }
        try paused {
            for frame in sample {
                guard Examination.same(try copy(frame), try subject.read(frame)) else {
                    throw Finding("the copy of frame \(frame) is not what the guest reads there")
                }
            }
        }
    }

    mutating func copyFillsExactly() throws {
        for _ in 0..<4 { _ = try write() }
        for _ in 0..<8 {
            let runs = scatteredRuns()
            try paused {
                let pages = try runs.flatMap { run in
                    try run.frames.flatMap { try copy(PageFrameNumber($0)) }
                }
                // Over two fillers: a byte that is not written keeps at least one of them.
                for filler in [UInt8(0xa5), 0x5a] {
                    guard Examination.same(try copy(runs, over: filler), pages) else {
                        throw Finding(
                            "\(runs.count) runs copied together are not the pages copied one by one"
                        )
                    }
                }
            }
        }
    }

    /// Lets the guest work until its memory has changed; false if it does not within a few tries.
    private func changes(_ work: () throws -> Void) throws -> Bool {
        let before = try copySample()
        for _ in 0..<16 {
            for _ in 0..<4 { try work() }
            if !Examination.same(try copySample(), before) { return true }
        }
        return false
    }

    private func working() throws -> () throws -> Void {
        guard let work = subject.work else { throw Skip("the subject has no work for the guest") }
        return work
    }

    func pauseHoldsTheGuest() throws {
        let work = try working()
        guard try changes(work) else {
            throw Finding("the subject's work changes no page while the guest runs")
        }
        let isHeld = try paused { try !changes(work) }
        guard isHeld else { throw Finding("memory changed between pause() and resume()") }
    }

    func resumeLetsTheGuestGoOn() throws {
        struct Left: Error {}
        let work = try working()
        for round in 0..<4 {
            if round % 2 == 0 {
                try paused { _ = try copySample() }
            } else {
                do { try paused { throw Left() } } catch is Left {}
            }
            guard try changes(work) else {
                throw Finding("the guest changes nothing after pause \(round + 1) and its resume()")
            }
        }
    }
}
