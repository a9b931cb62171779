import Glibc
import VarveCore

/// Counts in memory and takes checkpoints until it is killed.
func fillUntilKilled(_ store: FilePath) throws {
    let memory = ProcessMemory(tracking: .compareAll)
    let region = try memory.allocate(byteCount: 1 << 20)
    let session = try CaptureSession(of: memory, in: .create(at: store), lineage: "counter")
    while true {
        let count = region.bytes.load(as: UInt64.self) + 1
        for page in 0..<region.bytes.count / 4096 {
            region.bytes.storeBytes(of: count, toByteOffset: page * 4096, as: UInt64.self)
        }
        print("durable: \(try session.capture().checkpoint.id)")
        fflush(nil)
    }
}

/// Opens what a dead process left, continues from its newest checkpoint, and thins the rest.
func goOnAfterACrash(_ store: FilePath) throws {
    // Opening for writing truncates what was never published; nothing else has to be done.
    let repository = try Repository.open(at: store, .writing)
    guard let newest = try repository.newest(ofLineage: "counter") else {
        print("it died before its first checkpoint")
        return
    }
    let report = try repository.verify()
    guard report.isClean else {
        print("damaged: \(report.corruptions)")
        return
    }

    let memory = ProcessMemory(tracking: .compareAll)
    let region = try memory.allocate(byteCount: newest.pageCount * 4096)
    let restored = try repository.restore(newest, into: memory)
    precondition(restored.root == newest.memory.root)
    let count = region.bytes.load(as: UInt64.self)
    for page in 0..<newest.pageCount {
        let other = region.bytes.load(fromByteOffset: page * 4096, as: UInt64.self)
        precondition(other == count, "a checkpoint is of one moment")
    }
    print("goes on from \(count)")

    let session = try CaptureSession(of: memory, in: repository, lineage: "counter")
    region.bytes.storeBytes(of: count + 1, as: UInt64.self)
    print("next: \(try session.capture().checkpoint.parent == newest.id ? "follows" : "lost")")
    session.close()
    try thin(repository)
    try repository.close()
}

/// Keeps the newest three checkpoints of each lineage, and frees the space of the others.
func thin(_ repository: Repository) throws {
    let policy = RetentionPolicy(keepLast: 3)
    for lineage in try repository.lineages() {
        let all = try repository.checkpoints(lineage: lineage.name)
        let gone = policy.decide(all).filter { !$0.isKept }.map(\.checkpoint.id)
        try repository.forget(gone)
        print("forgotten: \(gone.count) of \(all.count)")
    }
    let done = try repository.planPrune(PruneOptions(unusedPercentMax: 0)).execute()
    print("freed: \(done.freedByteCount) bytes")
}
