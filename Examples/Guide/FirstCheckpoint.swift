import VarveCore

/// Takes two checkpoints of memory, reverts to the first, and reads the second.
func firstCheckpoint(in store: FilePath) throws {
    // Writes are tracked by the kernel; where it cannot, every capture compares every page.
    let tracksWrites = (try? ProcessMemory.checkSupport()) != nil
    let memory = ProcessMemory(tracking: tracksWrites ? .writeProtect : .compareAll)
    let region = try memory.allocate(byteCount: 16 << 20)

    let repository = try Repository.create(at: store)
    let session = try CaptureSession(of: memory, in: repository, lineage: "first")

    region.bytes.storeBytes(of: 1, as: UInt64.self)
    let before = try session.capture()
    region.bytes.storeBytes(of: 2, as: UInt64.self)
    let after = try session.capture(label: "two")
    print("changed: \(after.checkpoint.changedPageCount) page of \(after.checkpoint.pageCount)")

    try session.revert(to: before.checkpoint)
    print("after the revert: \(region.bytes.load(as: UInt64.self))")

    var number: UInt64 = 0
    try withUnsafeMutableBytes(of: &number) { bytes in
        var span = bytes.mutableBytes
        let reader = try VolumeReader(after.checkpoint, from: repository)
        try reader.readBytes(at: 0, into: &span)
    }
    print("in the second checkpoint: \(number)")

    session.close()
    try tenCheckpoints(of: memory, in: repository)
    try repository.close()
}

/// Takes ten checkpoints, one every 20 milliseconds, and keeps the newest five of them.
func tenCheckpoints(of memory: ProcessMemory, in repository: Repository) throws {
    var options = CaptureOptions()
    options.retention = Retention(RetentionPolicy(keepLast: 5))
    let session = try CaptureSession(
        of: memory, in: repository, lineage: "periodic", options: options)
    var schedule = CheckpointSchedule(every: .milliseconds(20))
    schedule.countMax = 10
    let periodic = try PeriodicCapture(of: session, schedule) { event in
        if case .failed(let error) = event { print("failed: \(error)") }
        return .goOn
    }
    periodic.wait()
    session.close()
    print("kept: \(try repository.checkpoints(lineage: "periodic").count) of 10")
}
