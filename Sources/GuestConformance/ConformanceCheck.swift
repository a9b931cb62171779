/// What `Guest`, `WritableGuest` and `DirtyTracking` ask of a guest, one check each.
///
/// The numbers stay what they are; new checks get new ones.
public enum ConformanceCheck: Int, CaseIterable, Sendable {
    // Memory.

    /// The layout is the same each time, and in the pause.
    case layoutIsStable = 1
    /// What is copied is what the guest finds in its memory.
    case copyEqualsMemory = 2
    /// Scattered runs are copied one after the other, without a gap, to the last byte.
    case copyFillsExactly = 3

    // The pause.

    /// While the guest is held its memory does not change.
    case pauseHoldsTheGuest = 4
    /// It goes on after each pause, one that was left by an error too.
    case resumeLetsTheGuestGoOn = 5

    // The dirty log, while it runs.

    /// What is written after `start` is in the first take.
    case writesSinceStartAreLogged = 6
    /// Every write is in the take that follows it.
    case nothingIsLostBetweenTakes = 7
    /// What was taken is not in every later take.
    case takeClearsTheLog = 8
    /// A take adds to the set that it is given.
    case takeOnlyAdds = 9
    /// The last take, in the pause, is complete.
    case finalTakeIsComplete = 10
    /// After `readDirty`, what was read or written since is in the next read or take.
    case readLosesNothing = 11
    /// `peekDirtyCount` counts and leaves the log as it is.
    case peekClearsNothing = 12
    /// What the engine writes is in the log.
    case ownWritesAreLogged = 13

    // The dirty log's end.

    /// A stopped log is `unknown`, or refuses.
    case stoppedLogIsUnknown = 14
    /// A second `start` gives a new value and ends the first log, or is refused.
    case secondStartEndsTheFirst = 15
    /// Reading a log that has ended takes nothing from the one that runs.
    case endedLogTakesNothing = 16
    /// Stopping a log that has ended leaves the one that runs.
    case endedLogStopsNoOther = 17
    /// A log that was never begun is `unknown`, or refuses.
    case strangeLogIsUnknown = 18
    /// After `stop`, `start` begins a log that sees writes again.
    case logCanBeginAgain = 19
    /// A log that somebody else ended is `unknown` or refuses when it is read next.
    case logEndedFromOutsideIsFound = 20

    // The owner.

    /// A second claim fails with `busy` and says what to do.
    case secondOwnerIsRefused = 21
    /// A claim that was released, or dropped, leaves the guest free.
    case releaseFreesTheGuest = 22
    /// Releasing a claim again does not free the next owner's guest.
    case oldReleaseFreesNoOther = 23
    /// Another object of the same guest is refused as well.
    case anotherObjectIsRefused = 24

    // Writing in place.

    /// Pages that are written are read back, and no other page changes.
    case writtenPagesAreRead = 25
    /// `mappedMemory` is the guest's memory, in both directions.
    case mappedMemoryIsTheGuests = 26
    /// Adopting the layout that it has changes nothing.
    case ownLayoutIsAdopted = 27
    /// State that is put back is what is captured next.
    case stateSurvivesARoundTrip = 28
}

extension ConformanceCheck {
    /// Its number and name, for a report.
    public var title: String { "\(rawValue) \(self)" }
}
