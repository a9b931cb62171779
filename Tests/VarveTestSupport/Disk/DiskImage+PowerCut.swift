// The effects of a power cut. Each change that was not synced is, at random,
//
//   kept      it reached the disk in time
//   lost      it did not
//   sized     a file grew, and the added part reads as zeros
//   torn      some of its sectors reached the disk, and a file grew as far as the last of them
//
// independently of all others: a later write may be kept and an earlier one lost. Names are kept or
// lost one by one. Everything synced is kept.

extension DiskImage {
    /// The disk after the power was cut and restored.
    package func afterPowerCut(_ random: inout SeededGenerator) -> DiskImage {
        var result = self
        // In a fixed order, so that a seed repeats.
        for path in directories.keys.sorted() { result.settleNames(path, &random) }
        for number in files.keys.sorted() { result.settle(number, &random) }
        result.dropUnnamed()
        return result
    }

    /// The disk after the process died: everything written is there, but not yet durable.
    package func afterKill() -> DiskImage {
        var result = self
        result.dropUnnamed()
        return result
    }

    private mutating func settleNames(_ path: String, _ random: inout SeededGenerator) {
        guard var directory = directories[path] else { return }
        for change in directory.pending where Bool.random(using: &random) {
            DiskImage.apply(change, to: &directory.durable)
        }
        directory.visible = directory.durable
        directory.pending = []
        directories[path] = directory
    }

    /// Decides which of a file's changes reached the disk.
    mutating func settle(_ number: Int, _ random: inout SeededGenerator) {
        guard var file = files[number] else { return }
        // Sometimes all have the same fate: such cuts are more likely than independent choices make
        // them.
        let fate = Int.random(in: 0..<6, using: &random)
        for change in file.pending {
            switch fate {
            case 0: continue
            case 1: DiskImage.apply(change, to: &file.durable)
            default: DiskImage.applyPartly(change, to: &file.durable, &random)
            }
        }
        file.visible = file.durable
        file.pending = []
        files[number] = file
    }

    private static func applyPartly(
        _ change: FileChange, to bytes: inout [UInt8], _ random: inout SeededGenerator
    ) {
        let fate = Int.random(in: 0..<4, using: &random)
        guard case .write(let new, let offset) = change else {
            if fate < 2 { apply(change, to: &bytes) }
            return
        }
        switch fate {
        case 0: apply(change, to: &bytes)
        case 1: return
        case 2:
            if bytes.count < offset + new.count { apply(.truncate(offset + new.count), to: &bytes) }
        default:
            for range in sectors(offset..<offset + new.count) where Bool.random(using: &random) {
                let part = new[range.lowerBound - offset..<range.upperBound - offset]
                apply(.write(Array(part), at: range.lowerBound), to: &bytes)
            }
        }
    }

    /// A range split at the sectors' boundaries.
    static func sectors(_ range: Range<Int>) -> [Range<Int>] {
        var result: [Range<Int>] = []
        var start = range.lowerBound
        while start < range.upperBound {
            let end = min(range.upperBound, (start / sectorByteCount + 1) * sectorByteCount)
            result.append(start..<end)
            start = end
        }
        return result
    }

    /// Forgets files and directories that have no name: no process has them open any more.
    private mutating func dropUnnamed() {
        var named: Set<Int> = []
        for directory in directories.values {
            named.formUnion(directory.visible.values)
            named.formUnion(directory.durable.values)
            for change in directory.pending {
                if case .set(_, let number) = change { named.insert(number) }
            }
        }
        files = files.filter { named.contains($0.key) }
        directories = directories.filter { path, _ in
            path.isEmpty || isNamed(directory: path)
        }
    }

    private func isNamed(directory path: String) -> Bool {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        let parent = parts.dropLast().joined(separator: "/")
        guard let found = directories[parent], let name = parts.last.map(String.init) else {
            return false
        }
        return found.visible[name] != nil || found.durable[name] != nil
    }
}
