import Synchronization

// One capture's phases. A capture's `encoding` may overlap any earlier phase of the next capture.
//
//   idle --begin()--> tracking --precopy()--> precopy(1) --precopy()--> precopy(2) ...
//                        |                        |
//                        +--------pause()---------+
//                                  v
//                               paused --copied()--> copied --resume()--> running
//                                  |                    |                    |
//                                  |                    |                encode()
//                          backOff(): resumed,          |                    v
//                          back to precopy              |                encoding
//                                  |                    |                    |  publish()
//                                  |                    |                    +----> published
//   any but published --------- fail() ---------------------------------> failed
//
// In each phase:
//   tracking, precopy   the guest runs; its log is on; copied pages may be out of date
//   paused              the guest is paused; the final set is being taken and copied
//   copied              the guest is paused; every changed page is in the pool
//   running, encoding   the guest runs; the pool holds the pages; nothing is published
//   published           the checkpoint exists
//   failed              nothing was published; the guest runs; its bits are merged back

/// The phase of a capture.
public enum CapturePhase: Hashable, Sendable {
    /// Nothing has been done yet.
    case idle
    /// The dirty log is on.
    case tracking
    /// Pages are copied while the guest runs; rounds are numbered from 1.
    case precopy(round: Int)
    /// The guest is paused.
    case paused
    /// Every changed page is copied; the guest is still paused.
    case copied
    /// The guest runs again.
    case running
    /// Every page is digested, compressed and written.
    case encoding
    /// The checkpoint exists.
    case published
    /// The capture failed; its pages are merged back and the guest runs.
    case failed
}

/// The transitions between phases; an illegal one traps.
struct CaptureMachine: Sendable {
    /// The phase now.
    private(set) var phase = CapturePhase.idle

    init() {}

    /// The log is on.
    mutating func begin() { move(to: .tracking, from: phase == .idle) }

    /// A round of copying while the guest runs.
    mutating func precopy() {
        switch phase {
        case .tracking: phase = .precopy(round: 1)
        case .precopy(let round): phase = .precopy(round: round + 1)
        default: illegal(.precopy(round: 0))
        }
    }

    /// The guest is paused.
    mutating func pause() {
        if case .precopy = phase {
            phase = .paused
        } else {
            move(to: .paused, from: phase == .tracking)
        }
    }

    /// More pages were dirty than the pool holds: the guest runs again and another round begins.
    mutating func backOff(round: Int) {
        move(to: .precopy(round: round), from: phase == .paused)
    }

    /// Every changed page is in the pool.
    mutating func copied() { move(to: .copied, from: phase == .paused) }

    /// The guest runs again.
    mutating func resume() { move(to: .running, from: phase == .copied) }

    /// Workers have the pages.
    mutating func encode() { move(to: .encoding, from: phase == .running) }

    /// The checkpoint exists.
    mutating func publish() { move(to: .published, from: phase == .encoding) }

    /// It failed.
    mutating func fail() { move(to: .failed, from: phase != .published) }

    private mutating func move(to next: CapturePhase, from isLegal: Bool) {
        if !isLegal { illegal(next) }
        phase = next
    }

    private func illegal(_ next: CapturePhase) -> Never {
        preconditionFailure("a capture cannot go from \(phase) to \(next)")
    }
}
