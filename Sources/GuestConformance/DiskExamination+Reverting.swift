import GuestModel

extension DiskExamination {
    mutating func revertedDisksAreWritten() throws {
        guard let group = try openGroup() as? any RevertibleDisks else {
            throw Skip("the group is no RevertibleDisks")
        }
        let first = try makeCut()
        let old = try readSample(first)
        var now = contents(old, after: try write())
        let names = disks.map(\.name)
        now = contents(
            now,
            after: try write { index, block, bytes in
                try DiskExamination.write(bytes, to: block, of: names[index], group)
            })
        let second = try makeCut()
        try expect(second, now, "a cut lacks what write wrote, or has more")
        try expect(first, old, "a cut changed with a write of the group's")
        try expectChanges(of: second, since: first, from: old, to: now)
        // Back again, as a revert that failed half-way does.
        for (index, blocks) in sample.enumerated() {
            for (place, block) in blocks.enumerated() {
                try DiskExamination.write(old[index][place], to: block, of: names[index], group)
            }
        }
        let third = try makeCut()
        try expect(third, old, "a cut lacks what write wrote, or has more")
        try expectChanges(of: third, since: second, from: now, to: old)
        for cut in [first, second, third] { try cut.release() }
        for index in disks.indices { try resize(index, group) }
    }

    private static func write(
        _ bytes: [UInt8], to block: UInt64, of name: String, _ group: any RevertibleDisks
    ) throws {
        try bytes.withUnsafeBytes { try group.write(block..<block + 1, of: name, from: $0) }
    }

    private func expectChanges(
        of cut: any DiskCut, since earlier: any DiskCut, from old: [[[UInt8]]], to new: [[[UInt8]]]
    ) throws {
        for index in disks.indices {
            guard let changed = try cut.changedBlocks(ofDisk: index, since: earlier) else {
                continue
            }
            let lacking = sample[index].indices.first { place in
                !Examination.same(old[index][place], new[index][place])
                    && !changed.contains { $0.contains(sample[index][place]) }
            }
            if let lacking {
                throw Finding(
                    "changedBlocks lack block \(sample[index][lacking]) of disk "
                        + "\(disks[index].name), which write wrote")
            }
        }
    }

    /// Takes the last sector of a disk away, and adds it again.
    private func resize(_ index: Int, _ group: any RevertibleDisks) throws {
        let disk = disks[index]
        let shorter = disk.byteCount - UInt64(disk.sectorByteCount)
        let last = disk.blockCount - 1
        let start = last * UInt64(Page.byteCount)
        try DiskExamination.write(
            [UInt8](repeating: 0xee, count: Page.byteCount), to: last, of: disk.name, group)
        do throws(GuestError) {
            try group.resize(disk.name, to: shorter)
        } catch {
            // A device, whose size stays as it is.
            guard error.code == .unsupported else { throw error }
            return
        }
        guard try group.disks()[index].byteCount == shorter else {
            throw Finding("disk \(disk.name) has another size than resize has set")
        }
        try group.resize(disk.name, to: disk.byteCount)
        let cut = try makeCut()
        let kept = Int(shorter - start)
        let bytes = try DiskExamination.read(cut, index, last..<last + 1)
        guard bytes[..<kept].allSatisfy({ $0 == 0xee }), bytes[kept...].allSatisfy({ $0 == 0 })
        else {
            throw Finding("resize of disk \(disk.name) keeps what it cut off, or loses more")
        }
        try cut.release()
    }
}
