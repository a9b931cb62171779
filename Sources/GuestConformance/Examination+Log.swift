import GuestModel

// The dirty log while it runs, and after its end.

extension Examination {
    mutating func writesSinceStartAreLogged() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        let written = try write()
        try expect(try take(tracking, log), has: written, "pages written between start and take")
        tracking.stop(log)
    }

    mutating func nothingIsLostBetweenTakes() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        for round in 0..<40 {
            let written = try write()
            let set = try take(tracking, log, isFinal: false)
            try expect(set, has: written, "pages written before take \(round + 1)")
        }
        tracking.stop(log)
    }

    mutating func takeClearsTheLog() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        for frame in frames { try subject.write(frame, page()) }
        _ = try take(tracking, log)
        // A guest may write by itself, and some pages may always count as dirty.
        let count = try (0..<4).map { _ in try take(tracking, log).count }.min() ?? 0
        guard layout.pageCount < 8 || count <= layout.pageCount / 2 else {
            throw Finding(
                "\(count) of \(layout.pageCount) pages are in each take though nothing was written")
        }
        tracking.stop(log)
    }

    mutating func takeOnlyAdds() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        let written = try write()
        // One frame of the layout, one far after it.
        let before = [sample[0], PageFrameNumber(layout.frameEnd + 1000)]
        for isFinal in [false, true] {
            var set = DirtyBitmap()
            for frame in before { set.insert(frame) }
            _ = try tracking.takeDirty(log, into: &set, isFinal: isFinal)
            try expect(set, has: Set(before), "frames that were in the set before takeDirty")
            if !isFinal { try expect(set, has: written, "pages written before takeDirty") }
        }
        tracking.stop(log)
    }

    mutating func finalTakeIsComplete() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        for _ in 0..<4 {
            var written = try write()
            var set = try take(tracking, log)
            written.formUnion(try write())
            set.formUnion(try paused { try take(tracking, log, isFinal: true) })
            try expect(set, has: written, "pages written before the pause")
        }
        tracking.stop(log)
    }

    mutating func readLosesNothing() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        for isFinal in [false, true, false] {
            let first = try write()
            var set = DirtyBitmap()
            guard try tracking.readDirty(log, into: &set, isFinal: isFinal) == .complete else {
                throw Finding("readDirty returns unknown for a running log")
            }
            try expect(set, has: first, "pages written before readDirty")
            let second = try write()
            let taken = try take(tracking, log)
            try expect(taken, has: second, "pages written between readDirty and takeDirty")
        }
        tracking.stop(log)
    }

    mutating func peekClearsNothing() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        for _ in 0..<4 {
            let written = try write()
            for _ in 0..<2 {
                guard try tracking.peekDirtyCount(log) > 0 else {
                    throw Finding("peekDirtyCount is 0 after \(written.count) pages were written")
                }
            }
            try expect(try take(tracking, log), has: written, "pages written before a peek")
        }
        tracking.stop(log)
    }

    mutating func ownWritesAreLogged() throws {
        let guest = try writable()
        let tracking = try tracking()
        let log = try tracking.start()
        _ = try take(tracking, log)
        let runs = scatteredRuns()
        let pages = runs.flatMap { run in run.frames.flatMap { _ in page() } }
        try paused { try Examination.write(pages, to: runs, of: guest) }
        let written = Set(runs.flatMap { $0.frames.map { PageFrameNumber($0) } })
        try expect(try take(tracking, log), has: written, "pages written by writePages")
        var mapped: Set<PageFrameNumber> = []
        try paused {
            for frame in written {
                guard let place = guest.mappedMemory(of: PageRange(first: frame, count: 1)) else {
                    continue
                }
                place.copyBytes(from: page())
                mapped.insert(frame)
            }
        }
        try expect(try take(tracking, log), has: mapped, "pages written through mappedMemory")
        tracking.stop(log)
    }

    // MARK: - Its end

    mutating func stoppedLogIsUnknown() throws {
        let tracking = try tracking()
        let log = try tracking.start()
        guard tracking.isRunning(log) else {
            throw Finding("isRunning is false for a log that was just begun")
        }
        _ = try take(tracking, log)
        tracking.stop(log)
        _ = try write()
        guard !tracking.isRunning(log) else { throw Finding("isRunning is true for a stopped log") }
        if let call = claimsToKnow(tracking, log) {
            throw Finding("\(call) returns complete for a log that was stopped")
        }
    }

    /// Begins a log while another one runs; nil if that is refused and the first one continues.
    private mutating func second(
        _ tracking: any DirtyTracking, after first: DirtyLog
    ) throws -> DirtyLog? {
        do {
            return try tracking.start()
        } catch {
            guard error.code == .busy else { throw error }
            let written = try write()
            try expect(try take(tracking, first), has: written, "pages in a log that was kept")
            return nil
        }
    }

    mutating func secondStartEndsTheFirst() throws {
        let tracking = try tracking()
        let first = try tracking.start()
        _ = try take(tracking, first)
        guard let second = try second(tracking, after: first) else { return }
        guard first != second else { throw Finding("start returns the same log twice") }
        guard tracking.isRunning(second), !tracking.isRunning(first) else {
            throw Finding("after a second start, isRunning is not true for the second log alone")
        }
        _ = try write()
        if let call = claimsToKnow(tracking, first) {
            throw Finding("\(call) returns complete for a log that a second start ended")
        }
        tracking.stop(second)
    }

    mutating func endedLogTakesNothing() throws {
        let tracking = try tracking()
        let first = try tracking.start()
        guard let second = try second(tracking, after: first) else { return }
        let written = try write()
        var set = DirtyBitmap()
        _ = try? tracking.takeDirty(first, into: &set, isFinal: false)
        _ = try? tracking.readDirty(first, into: &set, isFinal: false)
        _ = try? tracking.peekDirtyCount(first)
        try expect(
            try take(tracking, second), has: written, "pages written before the ended log was read")
        tracking.stop(second)
    }

    mutating func endedLogStopsNoOther() throws {
        let tracking = try tracking()
        let first = try tracking.start()
        guard let second = try second(tracking, after: first) else { return }
        tracking.stop(first)
        guard tracking.isRunning(second) else {
            throw Finding("stopping a log that had ended also ended the running one")
        }
        let written = try write()
        try expect(
            try take(tracking, second), has: written, "pages written after the ended log's stop")
        tracking.stop(second)
    }

    mutating func strangeLogIsUnknown() throws {
        let tracking = try tracking()
        let strange = DirtyLog()
        let log = try tracking.start()
        guard !tracking.isRunning(strange) else {
            throw Finding("isRunning is true for a log that was never begun")
        }
        if let call = claimsToKnow(tracking, strange) {
            throw Finding("\(call) returns complete for a log that was never begun")
        }
        tracking.stop(strange)
        let written = try write()
        try expect(try take(tracking, log), has: written, "pages written after an unknown stop")
        tracking.stop(log)
    }

    mutating func logCanBeginAgain() throws {
        let tracking = try tracking()
        var last: DirtyLog?
        for _ in 0..<3 {
            let log = try tracking.start()
            guard log != last else { throw Finding("start returns a log that was stopped before") }
            last = log
            for _ in 0..<2 {
                let written = try write()
                try expect(try take(tracking, log), has: written, "pages in a log begun again")
            }
            tracking.stop(log)
            _ = try write()
        }
    }

    mutating func logEndedFromOutsideIsFound() throws {
        let tracking = try tracking()
        guard let endLog = subject.endLog else {
            throw Skip("only the guest can end its log, according to the subject")
        }
        let log = try tracking.start()
        for _ in 0..<3 {
            _ = try take(tracking, log)
            try endLog()
            _ = try write()
            var set = DirtyBitmap()
            let answer = try? tracking.takeDirty(log, into: &set, isFinal: false)
            guard answer != .complete else {
                throw Finding("takeDirty returns complete for a log that was ended from outside")
            }
            // Either it continues and records writes again, or it reports that it has ended.
            guard tracking.isRunning(log) else { return }
            let written = try write()
            try expect(try take(tracking, log), has: written, "pages written after it continued")
        }
        tracking.stop(log)
    }
}
