import GuestModel

// Writing in place, and state.

extension Examination {
    static func write(
        _ pages: [UInt8], to runs: [PageRange], of guest: any WritableGuest
    ) throws(GuestError) {
        try guest.writePages(runs.span, from: pages.span.bytes)
    }

    mutating func writtenPagesAreRead() throws {
        let guest = try writable()
        for _ in 0..<4 {
            let runs = scatteredRuns()
            let pages = runs.flatMap { run in run.frames.flatMap { _ in page() } }
            var expected: [PageFrameNumber: [UInt8]] = [:]
            var position = 0
            for frame in runs.flatMap({ $0.frames }) {
                let bytes = pages[position..<position + Page.byteCount]
                expected[PageFrameNumber(frame)] = Array(bytes)
                position += Page.byteCount
            }
            try paused {
                let before = try copySample()
                try Examination.write(pages, to: runs, of: guest)
                for (index, frame) in sample.enumerated() {
                    let now = try copy(frame)
                    guard Examination.same(now, expected[frame] ?? before[index]) else {
                        throw Finding(
                            expected[frame] == nil
                                ? "writePages changed frame \(frame), which it was not given"
                                : "frame \(frame) does not hold what writePages was given")
                    }
                    guard Examination.same(now, try subject.read(frame)) else {
                        throw Finding("the guest does not read what was written to frame \(frame)")
                    }
                }
            }
        }
    }

    mutating func mappedMemoryIsTheGuests() throws {
        let guest = try writable()
        let runs = scatteredRuns()
        guard runs.contains(where: { guest.mappedMemory(of: $0) != nil }) else {
            throw Skip("the guest's memory is not mapped in this process")
        }
        try paused {
            for run in runs {
                guard let memory = guest.mappedMemory(of: run) else { continue }
                guard memory.count == run.byteCount else {
                    throw Finding("mappedMemory has \(memory.count) bytes for \(run.count) pages")
                }
                guard Examination.same(try copy([run]), [UInt8](memory)) else {
                    throw Finding("mappedMemory of \(run) is not what copyPages copies")
                }
                for offset in stride(from: 0, to: run.byteCount, by: Page.byteCount) {
                    UnsafeMutableRawBufferPointer(
                        rebasing: memory[offset..<offset + Page.byteCount]
                    ).copyBytes(from: page())
                }
                let read = try run.frames.flatMap { try subject.read(PageFrameNumber($0)) }
                guard Examination.same(read, [UInt8](memory)) else {
                    throw Finding("the guest does not read what was written to mappedMemory")
                }
            }
        }
    }

    mutating func changedPagesAreTheGuests() throws {
        let guest = try writable()
        let runs = scatteredRuns()
        let frames = runs.flatMap { $0.frames.map { PageFrameNumber($0) } }
        let pages = frames.map { _ in page() }
        try paused {
            let before = try frames.flatMap { try copy($0) }
            var seen: [PageFrameNumber] = []
            var held: [UInt8] = []
            let isChanged = try guest.changePages(runs.span) { frame, memory in
                held += memory
                if seen.count < pages.count { memory.copyBytes(from: pages[seen.count]) }
                seen.append(frame)
            }
            guard isChanged else {
                guard seen.isEmpty else {
                    throw Finding("changePages returns false, and has called its argument")
                }
                throw Skip("the guest passes no pages to be changed")
            }
            guard seen == frames else {
                throw Finding("changePages passes \(seen.count) pages, not the \(frames.count)")
            }
            guard Examination.same(held, before) else {
                throw Finding("changePages passes other memory than copyPages copies")
            }
            for (frame, page) in zip(frames, pages) {
                guard Examination.same(try copy(frame), page),
                    Examination.same(try subject.read(frame), page)
                else {
                    throw Finding("frame \(frame) does not hold what changePages was to change")
                }
            }
        }
    }

    mutating func ownLayoutIsAdopted() throws {
        let guest = try writable()
        _ = try write()
        try paused {
            let before = try copySample()
            try guest.adoptLayout(layout)
            guard try guest.layout() == layout, Examination.same(try copySample(), before) else {
                throw Finding("adoptLayout of the guest's own layout changes it")
            }
        }
    }

    mutating func stateSurvivesARoundTrip() throws {
        let guest = try writable()
        let state = try paused {
            let state = try guest.captureState()
            guard try guest.captureState() == state else {
                throw Finding("captureState changes while the guest is paused")
            }
            return state
        }
        for _ in 0..<8 { try subject.work?() }
        try guest.checkState(state)
        try paused {
            try guest.prepareState(state)
            try guest.restoreState(state)
            guard try guest.captureState() == state else {
                throw Finding("captureState after restoreState is not the state that was restored")
            }
        }
    }
}
