import Glibc

/// The system's clock.
package enum WallClock {
    /// Nanoseconds since 1970; 0 for a clock that is set before that.
    package static var nanoseconds: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        // At most 2262 in all that is stored (Int64); Linux lets nobody set a clock so far ahead.
        let seconds = UInt64(clamping: min(time.tv_sec, 9_223_372_035))
        return seconds * 1_000_000_000 + UInt64(clamping: time.tv_nsec)
    }

    /// Blocks the thread.
    package static func sleep(milliseconds: Int) {
        var time = timespec(tv_sec: 0, tv_nsec: milliseconds * 1_000_000)
        nanosleep(&time, nil)
    }
}
