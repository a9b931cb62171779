import CheckpointEngine
import CheckpointFormat
import CheckpointIndex
import CheckpointStore
import GuestModel
import SystemPackage
import Testing
import VarveTestSupport
import XenStream

@testable import XenGuest

/// A domain of a simulated hypervisor, a session for it in a repository, and a copy of all its
/// memory from each resume, for comparison.
final class Scene {
    static let number: UInt32 = 7

    let xen = FakeXen()
    let repository: Repository
    private let directory = TemporaryDirectory()
    var options = XenDomain.Options()
    var captureOptions = CaptureOptions()
    private(set) var domain: XenDomain?
    private(set) var session: CaptureSession?
    private(set) var checkpoints: [Checkpoint] = []
    private var copies: [CheckpointID: FakeDomain.Copy] = [:]
    var random: SeededGenerator

    /// - Parameter frames: memory with holes, and special pages above.
    init(
        _ salt: UInt64, pauseMode: XenPauseMode = .suspend,
        frames: [Range<UInt64>] = [0..<40, 43..<90, 2100..<2106]
    ) throws {
        random = TestSeed.generator(salt)
        repository = try Repository.create(at: directory.path.appending("store"))
        options.pauseMode = pauseMode
        captureOptions.poolByteCount = 8 << 20
        captureOptions.workerCount = 1
        captureOptions.pauseBudget = .microseconds(20)
        var guest = FakeDomain(Scene.number, frames: frames, seed: random.next())
        guest.grants = [
            GrantEntry(flags: 1 | 1 << 3 | 1 << 4, frame: frames[0].lowerBound + 3),
            GrantEntry(flags: 1, frame: frames[0].lowerBound + 4), GrantEntry(flags: 0, frame: 0),
        ]
        guest.mappedByXen = [frames[frames.count - 1].upperBound - 1]
        xen.add(guest)
    }

    /// The frames of the rings of xenstore and console, which a revert with devices empties.
    static let rings: [UInt64] = [2103, 2104]

    /// Gives the domain a disk and a network interface, which use some of its pages.
    func addDevices() {
        options.disksGoBack = true
        options.deviceTimeout = .seconds(5)
        xen.with { state in
            state.addDisk(Scene.number, "xvda", params: "/dev/vg/a")
            state.addInterface(Scene.number)
        }
        xen.with(Scene.number) { domain in
            domain.parameters[1] = Scene.rings[0]
            domain.parameters[17] = Scene.rings[1]
            domain.grants = [
                GrantEntry(flags: 1, frame: Scene.rings[1]),
                GrantEntry(flags: 1, frame: Scene.rings[0]),
                GrantEntry(flags: 1 | 1 << 3 | 1 << 4, frame: 5),
                GrantEntry(flags: 1 | 1 << 3, frame: 6), GrantEntry(flags: 1, frame: 7),
            ]
            domain.still = domain.copy
        }
    }

    /// Becomes the domain's owner, for the first time or again.
    @discardableResult
    func open() throws -> CaptureSession {
        close()
        let domain = try XenDomain(Scene.number, calls: xen, options: options)
        let session = try CaptureSession(
            of: domain, in: repository, lineage: "web", options: captureOptions)
        (self.domain, self.session) = (domain, session)
        return session
    }

    func close() {
        session?.close()
        (session, domain) = (nil, nil)
    }

    /// The guest writes some pages.
    func write() {
        xen.with(Scene.number) { domain in
            let frames = domain.slots.keys.sorted()
            for _ in 0..<Int.random(in: 1...20, using: &domain.random) {
                guard let frame = frames.randomElement(using: &domain.random) else { return }
                domain.write(frame, domain.page())
            }
            domain.context[domain.context.count - 30] &+= 1
        }
    }

    /// Captures, and compares with the naive copy.
    @discardableResult
    func capture(_ note: @autoclosure () -> String = "") throws -> CaptureResult {
        let session = try session ?? open()
        let result = try session.capture()
        let copy = xen.with(Scene.number) { $0.still }
        checkpoints.append(result.checkpoint)
        copies[result.checkpoint.id] = copy
        let wrong = try differences(result.checkpoint, copy)
        #expect(wrong.isEmpty, "frames \(wrong.prefix(8)) \(note())")
        let state = try repository.state(of: result.checkpoint)
        #expect(XenOrigin.hvmContext(state) == copy.context, "the processors \(note())")
        return result
    }

    /// Reverts in place, and compares the whole domain with the checkpoint's copy.
    func revert(to checkpoint: Checkpoint, _ note: @autoclosure () -> String = "") throws {
        let session = try session ?? open()
        try session.revert(to: checkpoint)
        try expectReverted(to: checkpoint, note())
    }

    /// The whole domain is the checkpoint's copy.
    func expectReverted(to checkpoint: Checkpoint, _ note: @autoclosure () -> String = "") throws {
        let now = xen.with(Scene.number) { $0.still }
        let then = try #require(copies[checkpoint.id])
        let frames = Set(now.pages.keys).union(then.pages.keys)
        let rings = options.disksGoBack ? Scene.rings : []
        let wrong = frames.filter { now.pages[$0] != then.pages[$0] }.sorted()
            .filter { !rings.contains($0) }
        #expect(wrong.isEmpty, "frames \(wrong.prefix(8)) \(note())")
        #expect(now.context == then.context, "the processors \(note())")
    }

    /// Frames whose page in the checkpoint differs from the copy's.
    func differences(_ checkpoint: Checkpoint, _ copy: FakeDomain.Copy) throws -> [UInt64] {
        let restored = SimulatedGuest(layout: .empty)
        _ = try repository.restore(checkpoint, into: restored)
        let pages = restored.with { $0.pages }
        return Set(pages.keys).union(copy.pages.keys).filter { pages[$0] != copy.pages[$0] }
            .sorted()
    }

    /// The domain runs as before.
    func expectSound(isLogOn: Bool? = nil, _ note: @autoclosure () -> String = "") {
        let found = xen.complaints(Scene.number, isLogOn: isLogOn)
        #expect(found.isEmpty, "\(note())")
    }
}

/// One sentence, and nothing else.
func isSentence(_ text: String) -> Bool {
    text.count > 10 && !text.contains("\n") && !text.contains(". ") && !text.hasSuffix(".")
}

/// The error of a call that must fail, whose message is one sentence.
func failure(
    _ location: SourceLocation = #_sourceLocation, of body: () throws -> Void
) -> GuestError? {
    do {
        try body()
        Issue.record("nothing was thrown", sourceLocation: location)
        return nil
    } catch {
        let found = (error as? CheckpointError)?.guestError ?? error as? GuestError
        #expect(isSentence(found?.message ?? ""), "\(error)", sourceLocation: location)
        return found
    }
}
