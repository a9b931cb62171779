import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import CheckpointUpkeep
import GuestModel
import PackStore
import Synchronization
import VarveTestSupport

/// A store on a simulated disk, guests that are captured into it, and a full copy of the guest for
/// each checkpoint.
///
/// Its steps continue after a failure, as a daemon would: the failure is noted, and must have left
/// the guest running.
final class CrashWorld: Sendable {
    /// The expected contents of a checkpoint.
    struct Copy: Sendable, Equatable {
        let lineage: String
        let label: String?
        let pages: [UInt64: [UInt8]]
        var disks: [String: [UInt8]] = [:]
    }

    /// A checkpoint whose publication was acknowledged.
    struct Acknowledged: Sendable {
        let id: CheckpointID
        /// Disk calls before the acknowledgment.
        let callCount: Int
    }

    /// A request to forget checkpoints.
    struct Forgetting: Sendable {
        let ids: [CheckpointID]
        /// Disk calls before the request.
        let start: Int
        /// Disk calls when it had returned; nil if it failed.
        var end: Int?
    }

    /// A request to set a label.
    struct Labelling: Sendable {
        let id: CheckpointID
        let label: String?
        /// Disk calls before the request.
        let start: Int
        /// Disk calls when it had returned; nil if it failed.
        var end: Int?
    }

    private struct State: Sendable {
        var files: SimulatedFiles
        var repository: Repository?
        var guests: [String: SimulatedGuest] = [:]
        var disks: [String: SimulatedDisks] = [:]
        var sessions: [String: CaptureSession] = [:]
        var acknowledged: [Acknowledged] = []
        var copies: [CheckpointID: Copy] = [:]
        var attempts: [Copy] = []
        var forgettings: [Forgetting] = []
        var labellings: [Labelling] = []
        /// Checkpoints that damage has made unreadable.
        var damaged: Set<CheckpointID> = []
        var problems: [String] = []
        var failureCount = 0

        /// The labels that each relabeled checkpoint may have after a number of disk calls: the
        /// last acknowledged one, and those requested since.
        func labels(after callCount: Int) -> [CheckpointID: [String?]] {
            var result: [CheckpointID: [String?]] = [:]
            for labelling in labellings where labelling.start < callCount {
                let isTold = labelling.end.map { $0 <= callCount } ?? false
                let before = result[labelling.id] ?? [copies[labelling.id]?.label]
                result[labelling.id] = (isTold ? [] : before) + [labelling.label]
            }
            return result
        }
    }

    static let guestPageCount = 48

    let disk: SimulatedDisk
    private let directory = TemporaryDirectory(inMemory: true)
    let packByteCountMax: Int
    private let state: Mutex<State>

    init(packByteCountMax: Int, seed: UInt64) {
        self.packByteCountMax = packByteCountMax
        disk = SimulatedDisk(indexRoot: directory.path, seed: seed)
        state = Mutex(State(files: disk.boot()))
    }

    deinit {
        // Sessions are freed before their repository, and its index before the directory.
        state.withLock { state in
            state.sessions = [:]
            state.repository = nil
        }
    }

    var acknowledged: [Acknowledged] { state.withLock { $0.acknowledged } }
    var copies: [CheckpointID: Copy] { state.withLock { $0.copies } }
    /// Every attempt to forget.
    var forgettings: [Forgetting] { state.withLock { $0.forgettings } }
    /// Guests at each attempt to capture them, successful or not.
    var attempts: [Copy] { state.withLock { $0.attempts } }
    /// Violations of the rules.
    var problems: [String] { state.withLock { $0.problems } }
    /// Steps that failed.
    var failureCount: Int { state.withLock { $0.failureCount } }
    var lineages: [String] { state.withLock { $0.guests.keys.sorted() } }

    private func noteFailure(_ step: String, _ error: any Error) {
        state.withLock { state in
            state.failureCount += 1
            if !"\(error)".contains("failed for") && !"\(error)".contains("no space is left")
                && !"\(error)".contains("cannot be opened or written")
                && !"\(error)".contains("as the test asked")
                && !"\(error)".contains("an earlier capture failed")
            {
                state.problems.append("\(step): \(error)")
            }
        }
    }

    // MARK: - The repository

    /// Creates the repository; tries again after a failure.
    func create() throws {
        let files = state.withLock { $0.files }
        func attempt() throws(RepositoryError) -> Repository {
            try Repository.create(
                at: disk.indexRoot, files: files, packByteCountMax: packByteCountMax)
        }
        do {
            keep(try attempt())
        } catch {
            noteFailure("create", error)
            do {
                keep(try attempt())
            } catch {
                // It was created, and opening it failed.
                guard error.code == .exists else { throw error }
                try open()
            }
        }
    }

    /// Opens it for writing; tries again after a failure.
    func open() throws {
        let files = state.withLock { $0.files }
        func attempt() throws -> Repository {
            try Repository.open(
                at: disk.indexRoot, .writing, files: files, packByteCountMax: packByteCountMax)
        }
        do {
            keep(try attempt())
        } catch {
            noteFailure("open", error)
            keep(try attempt())
        }
    }

    private func keep(_ repository: Repository) {
        state.withLock { $0.repository = repository }
    }

    func repository() throws -> Repository {
        if let open = state.withLock({ $0.repository }) { return open }
        try open()
        guard let open = state.withLock({ $0.repository }) else { throw Closed() }
        return open
    }

    private struct Closed: Error {}

    /// Opens it for reading and reads every checkpoint; tries again after a failure.
    func read() throws {
        let files = state.withLock { $0.files }
        func attempt() throws {
            let reader = try Repository.open(at: disk.indexRoot, .reading, files: files)
            for checkpoint in try reader.checkpoints() { _ = try reader.pageMap(of: checkpoint) }
        }
        do {
            try attempt()
        } catch {
            noteFailure("read", error)
            try attempt()
        }
    }

    /// A checkpoint with a name; looked up again after a failure.
    func checkpoint(named name: String) throws -> Checkpoint {
        let repository = try repository()
        do {
            return try repository.checkpoint(named: name)
        } catch {
            noteFailure("name", error)
            return try repository.checkpoint(named: name)
        }
    }

    /// Forgets checkpoints, numbered in the order in which they were acknowledged.
    func forget(_ positions: [Int]) throws {
        let ids = state.withLock { state in
            positions.filter { $0 < state.acknowledged.count }.map { state.acknowledged[$0].id }
        }
        let repository = try repository()
        var forgetting = Forgetting(ids: ids, start: disk.calls.count)
        do {
            try repository.forget(ids)
            forgetting.end = disk.calls.count
        } catch {
            noteFailure("forget", error)
        }
        state.withLock { [forgetting] in $0.forgettings.append(forgetting) }
    }

    /// Gives a checkpoint a label; checkpoints are numbered in the order of acknowledgment.
    func label(_ position: Int, _ label: String?) throws {
        guard let id = state.withLock({ $0.acknowledged.dropFirst(position).first?.id }) else {
            return
        }
        let repository = try repository()
        var labelling = Labelling(id: id, label: label, start: disk.calls.count)
        do {
            try repository.setLabel(label.map { try Label($0) }, of: id)
            labelling.end = disk.calls.count
        } catch {
            noteFailure("label", error)
        }
        state.withLock { [labelling] in $0.labellings.append(labelling) }
    }

    /// Prunes all space that can be freed.
    func prune() throws {
        do {
            try repository().planPrune(.everything).execute()
        } catch {
            noteFailure("prune", error)
        }
    }

    /// Closes the repository and damages it; notes once which checkpoints this has cost.
    func damage(_ body: @Sendable (inout DiskImage) -> Void) throws {
        close()
        var image = disk.image
        body(&image)
        disk.image = image
        let files = state.withLock { $0.files }
        let plan = try Repository.planRepair(
            at: disk.indexRoot, files: files, packByteCountMax: packByteCountMax)
        let lost = Set(plan.losses.map(\.id))
        state.withLock { $0.damaged = lost }
    }

    /// Checkpoints that damage has made unreadable.
    var damaged: Set<CheckpointID> { state.withLock { $0.damaged } }

    /// Repairs it; tries again after a failure.
    func repair() throws {
        let files = state.withLock { $0.files }
        func attempt() throws {
            let plan = try Repository.planRepair(
                at: disk.indexRoot, files: files, packByteCountMax: packByteCountMax)
            let outcome = try plan.execute()
            guard outcome.report.isClean else {
                let found = outcome.report.corruptions
                return state.withLock { $0.problems.append("not whole: \(found)") }
            }
        }
        do {
            try attempt()
        } catch {
            noteFailure("repair", error)
            try attempt()
        }
    }

    /// The conditions that must hold after this many calls.
    ///
    /// - Parameter isLive: true if checkpoints may also exist that are acknowledged only later.
    func check(
        after callCount: Int, _ scenario: CrashScenario, isLive: Bool
    ) -> CrashCheck {
        let state = state.withLock { $0 }
        let begun = state.forgettings.filter { $0.start < callCount }
        let ended = begun.filter { $0.end.map { $0 <= callCount } ?? false }
        let mayBeGone = Set(begun.flatMap(\.ids)).union(state.damaged)
        let known = state.acknowledged.filter { $0.callCount <= callCount }.map(\.id)
        return CrashCheck(
            copies: state.copies, labels: state.labels(after: callCount),
            attempts: isLive ? state.attempts : [],
            acknowledged: known.filter { !mayBeGone.contains($0) },
            forgotten: Set(ended.flatMap(\.ids)),
            mayBeGone: mayBeGone, mustRepair: scenario.isDamaged,
            packByteCountMax: packByteCountMax,
            abandonedByteCountMax: scenario.abandonedByteCountMax + (isLive ? 200 << 10 : 0))
    }

    /// Ends sessions and the repository.
    func close() {
        let (sessions, repository) = state.withLock { state in
            defer {
                state.sessions = [:]
                state.repository = nil
            }
            return (state.sessions, state.repository)
        }
        for session in sessions.values { session.close() }
        do { try repository?.close() } catch { noteFailure("close", error) }
    }

    /// The process dies and another one begins; guests are lost with it.
    func kill() {
        disk.kill()
        state.withLock { state in
            state.sessions = [:]
            state.repository = nil
            state.guests = [:]
            state.files = disk.boot()
        }
    }

    /// Removes all derived files.
    func deleteIndex() {
        let files = PosixFiles(root: disk.indexRoot)
        for name in (try? files.list("index")) ?? [] { try? files.remove("index/\(name)") }
    }

    // MARK: - Guests

    /// The guest of a lineage; created with the first page contents on first use.
    func guest(_ lineage: String) -> SimulatedGuest {
        state.withLock { state in
            if let guest = state.guests[lineage] { return guest }
            let guest = SimulatedGuest(layout: GuestLayout(pageCount: CrashWorld.guestPageCount))
            state.guests[lineage] = guest
            return guest
        }
    }

    /// The disks of a lineage's guest: none until they are set.
    func disks(_ lineage: String) -> SimulatedDisks {
        state.withLock { state in
            if let disks = state.disks[lineage] { return disks }
            let disks = SimulatedDisks()
            state.disks[lineage] = disks
            return disks
        }
    }

    /// Gives the guest of a lineage disks, each with blocks of its own; different values give
    /// different contents.
    func setDisks(_ lineage: String, _ blocks: [String: Range<Int>], value: Int) {
        let group = disks(lineage)
        var contents = group.contents.filter { blocks[$0.key] != nil }
        for (name, range) in blocks {
            var content = contents[name] ?? []
            let missing = range.upperBound * Page.byteCount - content.count
            if missing > 0 { content += [UInt8](repeating: 0, count: missing) }
            for block in range {
                content.replaceSubrange(
                    block * Page.byteCount..<(block + 1) * Page.byteCount,
                    with: CrashWorld.page(value &* 1000 &+ block))
            }
            contents[name] = content
        }
        group.set(contents)
    }

    static func page(_ value: Int) -> [UInt8] {
        var random = SeededGenerator(seed: UInt64(bitPattern: Int64(value)))
        return (0..<Page.byteCount / 8).flatMap { _ in
            withUnsafeBytes(of: random.next()) { Array($0) }
        }
    }

    /// The guest of a lineage writes to pages; different values give different contents.
    func write(_ lineage: String, _ frames: Range<Int>, value: Int) {
        guest(lineage).with { state in
            for frame in frames {
                state.write(UInt64(frame), CrashWorld.page(value &* 1000 &+ frame))
            }
        }
    }

    private func session(_ lineage: String, parent: Checkpoint?) throws -> CaptureSession {
        if let session = state.withLock({ $0.sessions[lineage] }) { return session }
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        let repository = try repository()
        let guest = guest(lineage)
        let disks = disks(lineage)
        let group = disks.contents.isEmpty ? nil : disks
        func attempt() throws -> CaptureSession {
            try CaptureSession(
                of: guest, in: repository, lineage: LineageName(lineage), parent: parent,
                disks: group, options: options)
        }
        let session: CaptureSession
        do {
            session = try attempt()
        } catch {
            noteFailure("session", error)
            session = try attempt()
        }
        state.withLock { $0.sessions[lineage] = session }
        return session
    }

    /// Takes a checkpoint; a failure is noted, and must leave the guest running.
    @discardableResult
    func capture(
        _ lineage: String = "web", label: String? = nil, parent: Checkpoint? = nil
    ) throws -> Checkpoint? {
        let session = try session(lineage, parent: parent)
        let guest = guest(lineage)
        let copy = Copy(
            lineage: lineage, label: label, pages: guest.with { $0.pages },
            disks: disks(lineage).contents)
        state.withLock { $0.attempts.append(copy) }
        let outcome = Result { try session.capture(label: label.map { try Label($0) }) }
        if guest.pausesOpen != 0 {
            state.withLock { $0.problems.append("\(lineage) was not resumed") }
        }
        switch outcome {
        case .success(let result):
            acknowledge(result.checkpoint, copy)
            return result.checkpoint
        case .failure(let error):
            noteFailure("capture", error)
            return nil
        }
    }

    /// Takes checkpoints, each of which begins before the previous one is published.
    ///
    /// - Parameter write: changes the guest before each.
    func captureOverlapping(_ count: Int, _ lineage: String, _ write: (Int) -> Void) throws {
        let session = try session(lineage, parent: nil)
        let guest = guest(lineage)
        var pending: [(PendingCapture, Copy)] = []
        for step in 0..<count {
            write(step)
            let copy = Copy(lineage: lineage, label: nil, pages: guest.with { $0.pages })
            state.withLock { $0.attempts.append(copy) }
            do {
                pending.append((try session.begin(), copy))
            } catch {
                noteFailure("begin", error)
            }
        }
        for (capture, copy) in pending {
            do {
                acknowledge(try capture.wait().checkpoint, copy)
            } catch {
                noteFailure("wait", error)
            }
        }
        if guest.pausesOpen != 0 {
            state.withLock { $0.problems.append("\(lineage) was not resumed") }
        }
    }

    /// Imports an image as the lineage's next checkpoint.
    func importImage(_ lineage: String) throws {
        let pages = guest(lineage).with { $0.pages }
        let copy = Copy(lineage: lineage, label: nil, pages: pages)
        state.withLock { $0.attempts.append(copy) }
        var image: [UInt8] = []
        for frame in pages.keys.sorted() { image += pages[frame] ?? [] }
        var position = 0
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        do {
            let checkpoint = try (try repository()).importImage(
                lineage: LineageName(lineage), options: options
            ) { buffer in
                let count = min(buffer.count, image.count - position)
                buffer.copyBytes(from: image[position..<position + count])
                position += count
                return count
            }
            acknowledge(checkpoint, copy)
        } catch {
            noteFailure("import", error)
        }
    }

    /// Imports an image that turns out to have changed after all of it was written to the packs.
    func failImport(_ lineage: String) throws {
        let pages = guest(lineage).with { $0.pages }
        let image = ChangingImage(bytes: pages.keys.sorted().flatMap { pages[$0] ?? [] })
        var options = CaptureOptions()
        options.poolByteCount = 4 << 20
        options.workerCount = 1
        do {
            _ = try (try repository()).importImage(
                image, lineage: LineageName(lineage), options: options)
            state.withLock { $0.problems.append("an image that changed was taken in") }
        } catch {
            noteFailure("import", error)
        }
    }

    private func acknowledge(_ checkpoint: Checkpoint, _ copy: Copy) {
        let callCount = disk.calls.count
        state.withLock { state in
            state.acknowledged.append(Acknowledged(id: checkpoint.id, callCount: callCount))
            state.copies[checkpoint.id] = copy
        }
    }
}

/// An image that is written to while it is read.
private struct ChangingImage: ImageSource {
    struct Changed: Error, CustomStringConvertible {
        var description: String { "the image changed, as the test asked" }
    }

    let bytes: [UInt8]

    var byteCount: Int { bytes.count }

    func read(_ buffer: UnsafeMutableRawBufferPointer, at offset: Int) throws {
        buffer.copyBytes(from: bytes[offset..<offset + buffer.count])
    }

    func checkUnchanged() throws { throw Changed() }
}
