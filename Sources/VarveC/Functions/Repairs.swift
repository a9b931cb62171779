public import CVarve
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import Glibc
import GuestModel
import PackStore

// MARK: - Labels

/// See `varve.h`.
@c @implementation
public func varve_checkpoint_set_label(
    _ repository: OpaquePointer?, _ id: UnsafePointer<varve_id>?, _ label: UnsafePointer<CChar>?
) -> Int32 {
    boundary {
        let id = try CheckpointID(id)
        let text = try optional(string: label, "the label")
        let repository = try Handles.find(repository, OpenRepository.self).repository
        let label = try text.map { (text) in try Label(text) }
        try repository.setLabel(label, of: id)
    }
}

// MARK: - Plans of repairs

/// See `varve_repair.h`.
@c @implementation
public func varve_repair_plan(
    _ path: UnsafePointer<CChar>?, _ options: UnsafePointer<varve_repair_options>?,
    _ call: UnsafePointer<varve_call>?, _ info: UnsafeMutablePointer<varve_repair_info>?
) -> Int32 {
    boundary {
        try varve_repair_info.checkPlace(info)
        let path = try filePath(path, "the path")
        let options = try varve_repair_options.read(options) ?? varve_repair_options()
        let waiting = try lockWaiting(options.wait_nanoseconds)
        let control = try CallControl(call)
        let plan = try Repository.planRepair(
            at: path, waiting: waiting, cancellation: control.cancellation,
            progress: control.progress)
        if let callback = options.finding {
            for finding in plan.findings { report(finding, callback, options.context) }
        }
        if let callback = options.loss {
            for loss in plan.losses { report(loss, callback, options.context) }
        }
        varve_repair_info.write(info) { info in
            info.finding_count = UInt64(plan.findings.count)
            info.whole_checkpoint_count = UInt64(plan.wholeCheckpoints.count)
            info.lost_checkpoint_count = UInt64(plan.losses.count)
            info.rewritten_pack_count = UInt64(plan.rewrittenPacks.count)
            info.removed_pack_count = UInt64(plan.removedPacks.count)
            info.missing_pack_count = plan.missingPacks.reduce(0) { $0 + UInt64($1.count) }
            info.moved_file_count = UInt64(plan.movedFiles.count)
            info.saved_page_count = UInt64(plan.savedPageCount)
            info.copied_byte_count = UInt64(plan.copiedByteCount)
            info.kept_byte_count = UInt64(plan.keptByteCount)
        }
    }
}

extension RepairPlan.Remedy {
    fileprivate var code: varve_remedy {
        switch self {
        case .rewritten: VARVE_REMEDY_REWRITTEN
        case .removed: VARVE_REMEDY_REMOVED
        case .moved: VARVE_REMEDY_MOVED
        case .renamed: VARVE_REMEDY_RENAMED
        case .named: VARVE_REMEDY_NAMED
        case .rebuilt: VARVE_REMEDY_REBUILT
        case .forgotten: VARVE_REMEDY_FORGOTTEN
        }
    }
}

private func report(
    _ finding: RepairPlan.Finding,
    _ callback:
        @convention(c) (
            UnsafeMutableRawPointer?, UnsafePointer<varve_corruption>?, Int32,
            UnsafePointer<varve_id>?, Int
        ) -> Void,
    _ context: UnsafeMutableRawPointer?
) {
    let affected = finding.affectedCheckpoints.map { varve_id($0) }
    finding.corruption.withStructure { corruption in
        var corruption = corruption
        affected.withUnsafeBufferPointer { affected in
            inCallback {
                callback(
                    context, &corruption, Int32(finding.remedy.code.rawValue),
                    affected.isEmpty ? nil : affected.baseAddress, affected.count)
            }
        }
    }
}

private func report(
    _ loss: RepairPlan.Loss,
    _ callback: @convention(c) (UnsafeMutableRawPointer?, UnsafePointer<varve_loss>?) -> Void,
    _ context: UnsafeMutableRawPointer?
) {
    let strings = CopiedStrings()
    var structure = varve_loss()
    structure.size = MemoryLayout<varve_loss>.stride
    structure.id = varve_id(loss.id)
    structure.lineage = strings.add(loss.checkpoint?.lineage.text)
    structure.label = strings.add(loss.checkpoint?.label?.text)
    var lost: [varve_lost] = []
    for (disk, frames) in loss.volumes {
        let name = strings.add(disk)
        for run in frames {
            let pages = varve_range(first: run.first.rawValue, count: UInt64(run.count))
            lost.append(varve_lost(disk: name, pages: pages))
        }
    }
    loss.reason.withStructure { reason in
        withUnsafePointer(to: reason) { reason in
            lost.withUnsafeBufferPointer { lost in
                structure.reason = reason
                structure.lost = lost.isEmpty ? nil : lost.baseAddress
                structure.lost_count = lost.count
                inCallback { callback(context, &structure) }
            }
        }
    }
    withExtendedLifetime(strings) {}
}

/// Strings for C, which end with this.
private final class CopiedStrings {
    private var copies: [UnsafeMutablePointer<CChar>] = []

    deinit { for copy in copies { free(copy) } }

    /// A copy; nil for nil, and where there is no memory.
    func add(_ text: String?) -> UnsafePointer<CChar>? {
        guard let text, let copy = strdup(text) else { return nil }
        copies.append(copy)
        return UnsafePointer(copy)
    }
}
