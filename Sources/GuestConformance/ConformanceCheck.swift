/// What `Guest`, `WritableGuest` and `DirtyTracking` require of a guest, one check each.
///
/// Numbers never change; new checks get new ones.
public enum ConformanceCheck: Int, CaseIterable, Sendable {
    // Memory.

    /// The layout is the same each time, and in the pause; `existing` returns the frames in it.
    case layoutIsStable = 1
    /// The copy equals what the guest reads in its memory.
    case copyEqualsMemory = 2
    /// Scattered runs are copied one after another, without a gap, to the last byte.
    case copyFillsExactly = 3

    // The pause.

    /// While the guest is paused, its memory does not change.
    case pauseHoldsTheGuest = 4
    /// It continues after each pause, even one that was left by an error.
    case resumeLetsTheGuestGoOn = 5

    // The dirty log, while it runs.

    /// Writes after `start` are in the first take.
    case writesSinceStartAreLogged = 6
    /// Every write is in the take that follows it.
    case nothingIsLostBetweenTakes = 7
    /// A taken page is not in every later take.
    case takeClearsTheLog = 8
    /// A take adds to the set that it is given.
    case takeOnlyAdds = 9
    /// The last take, in the pause, is complete.
    case finalTakeIsComplete = 10
    /// After `readDirty`, pages read or written since are in the next read or take.
    case readLosesNothing = 11
    /// `peekDirtyCount` counts without changing the log.
    case peekClearsNothing = 12
    /// The engine's own writes are in the log.
    case ownWritesAreLogged = 13

    // The dirty log's end.

    /// A stopped log returns `unknown`, or throws.
    case stoppedLogIsUnknown = 14
    /// A second `start` gives a new value and ends the first log, or is refused.
    case secondStartEndsTheFirst = 15
    /// Reading a log that has ended takes nothing from the running one.
    case endedLogTakesNothing = 16
    /// Stopping a log that has ended does not stop the running one.
    case endedLogStopsNoOther = 17
    /// A log that was never begun returns `unknown`, or throws.
    case strangeLogIsUnknown = 18
    /// After `stop`, `start` begins a log that records writes again.
    case logCanBeginAgain = 19
    /// A log that was ended from outside returns `unknown` or throws when it is next read.
    case logEndedFromOutsideIsFound = 20

    // The owner.

    /// A second claim fails with `busy` and names the remedy.
    case secondOwnerIsRefused = 21
    /// A claim that was released, or dropped, leaves the guest free.
    case releaseFreesTheGuest = 22
    /// Releasing a claim again does not free the next owner's guest.
    case oldReleaseFreesNoOther = 23
    /// Another object for the same guest is refused too.
    case anotherObjectIsRefused = 24

    // Writing in place.

    /// Written pages are read back, and no other page changes.
    case writtenPagesAreRead = 25
    /// `mappedMemory` is the guest's memory, in both directions.
    case mappedMemoryIsTheGuests = 26
    /// Adopting the current layout changes nothing.
    case ownLayoutIsAdopted = 27
    /// State that was restored is what is captured next.
    case stateSurvivesARoundTrip = 28
    /// `changePages` passes the guest's memory, page by page in order, in both directions.
    case changedPagesAreTheGuests = 29
}

extension ConformanceCheck {
    /// Its number and name, for a report.
    public var title: String { "\(rawValue) \(self)" }
}
