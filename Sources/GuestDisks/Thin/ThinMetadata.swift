import Glibc
import GuestModel
import SystemPackage

/// Asks the thin-provisioning tools about snapshots, on a metadata snapshot of their pool.
///
/// A pool has at most one metadata snapshot. It is noted in the journal before it is taken and is
/// always given back: one that leaks would block all later requests, of any process.
struct ThinMetadata {
    private let group: ThinDisks
    private var calls: any DeviceMapperCalls { group.calls }

    init(_ group: ThinDisks) { self.group = group }

    /// The answer; nil if it cannot be had, and then a notice says why.
    ///
    /// Takes some tenths of a second, more for volumes with very many blocks.
    func answer(
        _ question: MappingReader.Question, _ part: ThinPart
    ) throws(GuestError) -> [BlockRange]? {
        func unknown(_ reason: String) -> [BlockRange]? {
            group.notice("disk \(part.disk.name): all blocks are compared, because \(reason)")
            return nil
        }
        do throws(GuestError) {
            guard let pool = try ThinPool(named: part.poolName, uuid: part.poolUUID, calls) else {
                return unknown("the pool \(part.poolName) does not exist")
            }
            guard let entry = try reserve(pool) else {
                return unknown(
                    "another program holds the metadata snapshot of the pool "
                        + "\(part.poolName); if none runs, give it back "
                        + "(dmsetup message \(part.poolName) 0 release_metadata_snap)")
            }
            var found: [BlockRange]?
            var failure: GuestError?
            do throws(GuestError) {
                found = try ask(question, part, pool)
            } catch {
                failure = error
            }
            do throws(GuestError) {
                try giveBack(pool)
                try entry.remove()
            } catch {
                group.notice(
                    "the metadata snapshot of the pool \(part.poolName) was not given back: "
                        + error.message)
            }
            if let failure { throw failure }
            return found ?? unknown("the tools' answer was not understood")
        } catch {
            return unknown(error.message)
        }
    }

    /// Takes the metadata snapshot; nil if another keeps it for too long.
    private func reserve(_ pool: ThinPool) throws(GuestError) -> JournalEntry? {
        let end = ContinuousClock.now + group.options.metadataWait
        var record = JournalRecord(.metadata)
        record.lines = [["pool", pool.device.name, pool.device.uuid]]
        while true {
            if try !pool.status(calls).hasMetadataSnapshot {
                let entry = try group.journal.add("metadata-\(Journal.makeToken())", record)
                do throws(GuestError) {
                    try calls.message(pool.device.number, "reserve_metadata_snap")
                    return entry
                } catch {
                    // Somebody was faster: it is not ours.
                    if error.errno != EBUSY { try? giveBack(pool) }
                    try entry.remove()
                    guard error.errno == EBUSY else { throw error }
                }
            }
            guard ContinuousClock.now < end else { return nil }
            system_sleep(microseconds: 20_000)
        }
    }

    private func giveBack(_ pool: ThinPool) throws(GuestError) {
        do throws(GuestError) {
            try calls.message(pool.device.number, "release_metadata_snap")
        } catch {
            // None is held. Any other failure is tried once more.
            if error.errno == EINVAL { return }
            try calls.message(pool.device.number, "release_metadata_snap")
        }
    }

    private func ask(
        _ question: MappingReader.Question, _ part: ThinPart, _ pool: ThinPool
    ) throws(GuestError) -> [BlockRange]? {
        // Without a block number after it: newer versions of the tools accept none, and there is
        // only one metadata snapshot.
        let (tool, arguments) =
            switch question {
            case .difference(let left, let right):
                ("thin_delta", ["--metadata-snap", "--thin1", "\(left)", "--thin2", "\(right)"])
            case .mapped(let id): ("thin_dump", ["--metadata-snap", "--dev-id", "\(id)"])
            }
        var result: [BlockRange]?
        try calls.withNode(of: pool.table.metadata, in: group.journal.directory) {
            (path) throws(GuestError) in
            for program in [[tool], ["/usr/sbin/\(tool)"], ["pdata_tools", tool]] {
                var reader = MappingReader(
                    question, blockByteCount: pool.table.blockByteCount,
                    blockCount: part.disk.blockCount)
                do throws(GuestError) {
                    let end = try calls.run(
                        program + arguments + [path.string], within: group.options.toolDeadline
                    ) { (bytes) throws(GuestError) in
                        guard reader.feed(bytes) else {
                            throw GuestError(
                                code: .callFailed,
                                message: "\(tool) printed what was not understood, or too much")
                        }
                    }
                    guard end.status == 0 else {
                        throw GuestError(
                            code: .callFailed,
                            message: "\(tool) failed with status \(end.status): \(end.complaint)")
                    }
                    result = reader.result
                    return
                } catch {
                    guard error.errno == ENOENT else { throw error }
                }
            }
            throw GuestError(
                code: .unsupported,
                message: "\(tool) was not found; install thin-provisioning-tools")
        }
        return result
    }
}
