import GuestDisks
import GuestModel
import Synchronization
import XenGuest

// A suspended guest may have requests to its disks under way; its front ends issue them again after
// a restore, so memory and disks agree whatever became of them. A reader of the disks alone, from
// outside, sees each of them done, not done or half done. So it is noted how many there were, and a
// cut can wait for them.

/// Disks of a domain, and how many requests to them are under way when they are cut.
final class WatchedDisks: JournaledDisks, ExchangeableDisks {
    private let inner: any DiskGroup
    private let host: XenHost
    private let domain: XenHost.Domain
    private let settleTime: Duration

    /// - Parameter settleTime: how long the cut waits until no request is under way.
    init(
        _ inner: any DiskGroup, of domain: XenHost.Domain, _ host: XenHost, settleTime: Duration
    ) {
        self.inner = inner
        self.domain = domain
        self.host = host
        self.settleTime = settleTime
    }

    func disks() throws(GuestError) -> [GuestDisk] { try inner.disks() }

    func prepareCut() throws(GuestError) -> any DiskCut {
        let cut = try inner.prepareCut()
        do throws(GuestError) {
            // Front ends that connect between this and the pause have other rings, which takes a
            // suspension in between, or a disk that was just attached.
            let rings = try host.diskRings(of: domain)
            return WatchedCut(cut, rings, settleTime: settleTime)
        } catch {
            try? cut.release()
            throw error
        }
    }

    func standingCut(_ name: String) throws(GuestError) -> (any DiskCut)? {
        try inner.standingCut(name)
    }

    func prepareExchange(
        from cut: (any DiskCut)?
    ) throws(GuestError) -> any DiskExchange {
        try XenDiskFinder.exchangeable(inner)
            .prepareExchange(from: (cut as? WatchedCut)?.inner ?? cut)
    }

    func leftovers() throws(GuestError) -> [DiskLeftover] {
        try (inner as? any JournaledDisks)?.leftovers() ?? []
    }

    @discardableResult
    func dropLeftovers() throws(GuestError) -> [DiskLeftover] {
        try (inner as? any JournaledDisks)?.dropLeftovers() ?? []
    }
}

/// A cut that looks at the rings of the disks first.
private final class WatchedCut: DiskCut {
    private struct State: Sendable {
        /// Dropped after the pause.
        var rings: XenDiskRings?
        /// Of each disk that has rings, once the cut was made; with room from the beginning.
        var counts: [Int?]
    }

    let inner: any DiskCut
    private let settleTime: Duration
    private let names: [String]
    private let state: Mutex<State>

    init(_ inner: any DiskCut, _ rings: XenDiskRings, settleTime: Duration) {
        self.inner = inner
        self.settleTime = settleTime
        names = rings.names
        state = Mutex(State(rings: rings, counts: names.map { _ in nil }))
    }

    var disks: [GuestDisk] { inner.disks }
    var name: String { inner.name }

    func cut(within budget: Duration) throws(GuestError) -> DiskCutTimes {
        let waited = state.withLock { state in
            guard let rings = state.rings else { return Duration.zero }
            let waited = rings.wait(atMost: settleTime)
            for index in names.indices {
                state.counts[index] = rings.requestsUnderWay(ofDisk: index)
            }
            return waited
        }
        var times = try inner.cut(within: budget)
        times.drain += waited
        // Nothing will be read, and this cut may stand for long.
        if inner.disks.isEmpty { dropRings() }
        return times
    }

    func requestsUnderWay(ofDisk index: Int) -> Int? {
        let name = inner.disks[index].name
        // `==` takes different bytes for one name if they look equal.
        guard let ring = names.firstIndex(where: { $0.utf8.elementsEqual(name.utf8) }) else {
            return nil
        }
        return state.withLock { $0.counts[ring] }
    }

    /// Unmaps the rings: a mapping must not outlast the domain.
    private func dropRings() {
        let rings = state.withLock { state in
            defer { state.rings = nil }
            return state.rings
        }
        withExtendedLifetime(rings) {}
    }

    func changedBlocks(
        ofDisk index: Int, since earlier: any DiskCut
    ) throws(GuestError) -> [BlockRange]? {
        dropRings()
        let earlier = (earlier as? WatchedCut)?.inner ?? earlier
        return try inner.changedBlocks(ofDisk: index, since: earlier)
    }

    func storedBlocks(ofDisk index: Int) throws(GuestError) -> [BlockRange] {
        dropRings()
        return try inner.storedBlocks(ofDisk: index)
    }

    func read(
        _ blocks: BlockRange, ofDisk index: Int, into destination: UnsafeMutableRawBufferPointer
    ) throws(GuestError) {
        try inner.read(blocks, ofDisk: index, into: destination)
    }

    func readingEnded() { inner.readingEnded() }

    func release() throws(GuestError) {
        dropRings()
        try inner.release()
    }
}
