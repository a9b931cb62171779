import GuestModel
import Synchronization

/// Pages of a guest that no checkpoint has yet.
struct UnsavedPages: Sendable {
    var pages = DirtyBitmap()
    /// True if any other page may be one: all are compared.
    var comparesAll = false

    mutating func formUnion(_ other: UnsavedPages) {
        pages.formUnion(other.pages)
        comparesAll = comparesAll || other.comparesAll
    }
}

/// The pages of one capture, which go back to the session if it fails.
///
/// The capturing thread fills it; the pipeline's reads it when the capture has failed.
final class TakenPages: Sendable {
    private let unsaved = Mutex(UnsavedPages())

    /// True if every page is compared.
    var comparesAll: Bool { unsaved.withLock { $0.comparesAll } }

    func compareAll() {
        unsaved.withLock { $0.comparesAll = true }
    }

    func insert(_ pages: DirtyBitmap) {
        unsaved.withLock { $0.pages.formUnion(pages) }
    }

    func merge(_ other: UnsavedPages) {
        unsaved.withLock { $0.formUnion(other) }
    }

    func reserveCapacity(frameEnd: UInt64) {
        unsaved.withLock { $0.pages.reserveCapacity(frameEnd: frameEnd) }
    }

    /// How many of the pages are frames of a guest.
    func count(within frames: DirtyBitmap) -> Int {
        var pages = unsaved.withLock { $0.pages }
        pages.formIntersection(frames)
        return pages.count
    }

    /// What goes back after a failure: after a missed page, every page is in doubt.
    func pages(after error: CheckpointError) -> UnsavedPages {
        var pages = unsaved.withLock { $0 }
        if error.code == .auditMissed { pages.comparesAll = true }
        return pages
    }
}
