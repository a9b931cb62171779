package import GuestModel
import Synchronization

// The front end of a disk makes requests in a ring that it shares with the back end, which writes
// its answers over them: xen/include/public/io/blkif.h. How many are under way is in the first page
// (`struct blkif_sring`, ring.h): u32 requests made, u32, u32 requests answered. A ring has 32
// entries for each of its pages, and a disk one ring, or one for each of its queues.
//
// The guest writes the indices, the grants and the nodes of xenstore that lead there, so none of
// them is believed: what cannot be is unknown. A page is mapped as memory of the domain, not by its
// grant, so that the guest can end the grant at any time. Such a mapping keeps the page, not the
// guest's use of it: if it gives the page back, what is read is old.

/// The rings of a domain's disks, mapped for reading.
///
/// Made while the domain runs, read while it is suspended, and released soon after: the mapping
/// keeps the memory of a domain that is destroyed meanwhile.
package final class XenDiskRings: Sendable {
    /// Maximum number of queues of a disk: more than Linux's back end has on any host that Xen
    /// supports here.
    private static let queueCountMax: UInt32 = 256
    /// `ring-page-order` that Linux's back end accepts: 16 pages.
    private static let pageOrderMax: UInt32 = 4
    /// Entries of the ring in one page.
    private static let entriesPerPage: UInt32 = 32
    /// How often indices are read while they are waited for.
    private static let pollMicroseconds: UInt32 = 200

    /// A disk's rings.
    private struct Disk: Sendable {
        let name: String
        let rings: MappedRings
    }

    private let disks: [Disk]

    fileprivate init(_ found: [(name: String, rings: MappedRings)]) {
        disks = found.map { Disk(name: $0.name, rings: $0.rings) }
    }

    /// The disks that have rings; an index names one of them below.
    package var names: [String] { disks.map(\.name) }

    /// The number of requests of a disk that are not answered; nil if that is unknown.
    ///
    /// Only reads memory.
    package func requestsUnderWay(ofDisk index: Int) -> Int? {
        disks[index].rings.requestsUnderWay
    }

    /// Waits until no disk has a request under way, as far as that is known, or until the time is
    /// over.
    ///
    /// - Returns: how long that took.
    package func wait(atMost limit: Duration) -> Duration {
        guard limit > .zero else { return .zero }
        let start = ContinuousClock.now
        while disks.contains(where: { ($0.rings.requestsUnderWay ?? 0) > 0 }),
            ContinuousClock.now - start < limit
        {
            system_sleep(microseconds: XenDiskRings.pollMicroseconds)
        }
        return ContinuousClock.now - start
    }

    // MARK: - What a ring says

    /// The requests under way in a ring; nil if its indices cannot be right.
    ///
    /// - Parameters:
    ///   - page: its first page, to which the guest may write at any time.
    ///   - entryCount: how many requests it has room for.
    static func requestsUnderWay(_ page: UnsafeRawPointer, entryCount: UInt32) -> Int? {
        // Each index is read once. Answers first: they only follow requests, so the difference is
        // none of a request that was made in between.
        let answered = index(page, 8)
        let made = index(page, 0)
        // Indices run through all of 2^32.
        let count = made &- answered
        return count <= entryCount ? Int(count) : nil
    }

    private static func index(_ page: UnsafeRawPointer, _ offset: Int) -> UInt32 {
        (page + offset).assumingMemoryBound(to: Atomic<UInt32>.self).pointee
            .load(ordering: .acquiring)
    }

    // MARK: - Where the rings are

    /// Maps the rings of a domain's disks that dom0 provides; those that cannot be are left out.
    static func map(
        _ devices: [(name: String, number: String)], of domain: UInt32, _ calls: any XenCalls
    ) throws(GuestError) -> XenDiskRings {
        var places: [(name: String, rings: [Place])] = []
        for device in devices {
            let front = "/local/domain/\(domain)/device/vbd/\(device.number)"
            if let rings = try self.places(front, calls) { places.append((device.name, rings)) }
        }
        guard !places.isEmpty else { return XenDiskRings([]) }
        let grants = try calls.grantTable(domain)
        var found: [(String, MappedRings)] = []
        for (name, rings) in places {
            if let mapped = try MappedRings(rings, grants, of: domain, calls) {
                found.append((name, mapped))
            }
        }
        return XenDiskRings(found)
    }

    /// A ring as its front end describes it.
    fileprivate struct Place {
        let grant: UInt32
        let entryCount: UInt32
    }

    /// The rings of a front end, read as blkback reads them; nil if they are none that it accepts.
    private static func places(
        _ front: String, _ calls: any XenCalls
    ) throws(GuestError) -> [Place]? {
        var queueCount: UInt32 = 1
        if let text = try calls.read("\(front)/multi-queue-num-queues") {
            guard let count = UInt32(text), 1...queueCountMax ~= count else { return nil }
            queueCount = count
        }
        var pageOrder: UInt32 = 0
        var hasOrder = false
        if let text = try calls.read("\(front)/ring-page-order") {
            guard let order = UInt32(text), order <= pageOrderMax else { return nil }
            (pageOrder, hasOrder) = (order, true)
        }
        var places: [Place] = []
        for queue in 0..<queueCount {
            let ring = queueCount == 1 ? front : "\(front)/queue-\(queue)"
            var text: String?
            // Several pages have names of their own; with one, front ends differ.
            if hasOrder { text = try calls.read("\(ring)/ring-ref0") }
            if text == nil, pageOrder == 0 { text = try calls.read("\(ring)/ring-ref") }
            guard let text, let grant = UInt32(text) else { return nil }
            places.append(Place(grant: grant, entryCount: entriesPerPage << pageOrder))
        }
        return places
    }
}

/// The first pages of a disk's rings.
private final class MappedRings: Sendable {
    private struct Ring: Sendable {
        let pageIndex: Int
        let entryCount: UInt32
    }

    private let rings: [Ring]
    // Only read, and unmapped with this.
    private nonisolated(unsafe) let address: UnsafeMutableRawPointer
    private let pageCount: Int
    private let calls: any XenCalls

    /// Nil if a page cannot be mapped.
    init?(
        _ places: [XenDiskRings.Place], _ grants: [GrantEntry], of domain: UInt32,
        _ calls: any XenCalls
    ) throws(GuestError) {
        var frames: [UInt] = []
        for place in places {
            guard place.grant < grants.count else { return nil }
            let entry = grants[Int(place.grant)]
            guard entry.permitsAccess else { return nil }
            frames.append(UInt(entry.frame))
        }
        var errors = [Int32](repeating: 0, count: frames.count)
        var mapped: UnsafeMutableRawPointer?
        var failure: GuestError?
        frames.withUnsafeBufferPointer { frames in
            errors.withUnsafeMutableBufferPointer { errors in
                do throws(GuestError) {
                    mapped = try calls.map(domain, frames, isWritable: false, errors: errors)
                } catch {
                    failure = error
                }
            }
        }
        if let failure { throw failure }
        guard let mapped else { return nil }
        guard errors.allSatisfy({ $0 == 0 }) else {
            calls.unmap(mapped, pageCount: frames.count)
            return nil
        }
        rings = places.enumerated().map { Ring(pageIndex: $0, entryCount: $1.entryCount) }
        address = mapped
        pageCount = frames.count
        self.calls = calls
    }

    deinit { calls.unmap(address, pageCount: pageCount) }

    var requestsUnderWay: Int? {
        var sum = 0
        for ring in rings {
            let page = UnsafeRawPointer(address + ring.pageIndex * Page.byteCount)
            guard
                let count = XenDiskRings.requestsUnderWay(page, entryCount: ring.entryCount)
            else { return nil }
            sum += count
        }
        return sum
    }
}

extension XenHost {
    /// Maps the rings of the disks that dom0 gives to a domain, and that it can write to.
    ///
    /// Blocks for some calls of xenstore and Xen.
    package func diskRings(of domain: Domain) throws(GuestError) -> XenDiskRings {
        var devices: [(name: String, number: String)] = []
        for (path, disk) in try backends(of: domain) where !disk.isReadOnly && !disk.isCDROM {
            devices.append((disk.name, String(path.split(separator: "/").last ?? "")))
        }
        return try XenDiskRings.map(devices, of: domain.domainID, calls)
    }
}
