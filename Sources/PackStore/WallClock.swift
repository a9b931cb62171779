import Glibc

/// The system's clock.
package enum WallClock {
    /// Nanoseconds since 1970; 0 if the clock is set earlier.
    package static var nanoseconds: UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        // Stored times end in the year 2262 (Int64); Linux does not let a clock be set that far
        // ahead.
        let seconds = UInt64(clamping: min(time.tv_sec, 9_223_372_035))
        return seconds * 1_000_000_000 + UInt64(clamping: time.tv_nsec)
    }

    /// Blocks the calling thread.
    package static func sleep(milliseconds: Int) {
        var time = timespec(tv_sec: 0, tv_nsec: milliseconds * 1_000_000)
        nanosleep(&time, nil)
    }
}
