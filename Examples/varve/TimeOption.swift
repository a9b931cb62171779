import ArgumentParser
import Glibc

/// A moment on the command line: a time in UTC or the beginning of one, or a time ago.
struct TimeOption {
    /// The first and the last nanosecond of its range, since 1970.
    let first: Int64
    let last: Int64

    /// Reads `2026-05-10T12:30:05.25Z`, the beginning of such a time from the day on, or `2h`.
    init(_ text: String) throws {
        guard let range = TimeOption.ago(text) ?? TimeOption.time(text) else {
            throw ValidationError(
                "'\(text)' is not a time; give one as 'varve log' prints it, or its beginning "
                    + "with at least the day, or a number and one of s, m, h, d, w for a time ago")
        }
        (first, last) = (range.lowerBound, range.upperBound)
    }

    private static func ago(_ text: String) -> ClosedRange<Int64>? {
        let units: [Character: Int64] = ["s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800]
        guard let unit = text.last.flatMap({ units[$0] }), let count = Int64(text.dropLast()),
            (0...1_000_000).contains(count)
        else { return nil }
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        let moment = (Int64(now.tv_sec) - count * unit) * 1_000_000_000 + Int64(now.tv_nsec)
        return moment...moment
    }

    private static func time(_ text: String) -> ClosedRange<Int64>? {
        let form = #/(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?Z?/#
        guard let match = text.wholeMatch(of: form) else { return nil }
        func number(_ digits: Substring?) -> Int32 { digits.flatMap { Int32($0) } ?? 0 }
        let (hour, minute, second) = (match.4, match.5, match.6)
        var fields = tm()
        fields.tm_year = number(match.1) - 1900
        fields.tm_mon = number(match.2) - 1
        fields.tm_mday = number(match.3)
        fields.tm_hour = number(hour)
        fields.tm_min = number(minute)
        fields.tm_sec = number(second)
        let stated = fields
        let seconds = Int64(timegm(&fields))
        // timegm turns the 31st of a short month, and the like, into another day.
        guard fields.tm_mon == stated.tm_mon, fields.tm_mday == stated.tm_mday,
            fields.tm_hour == stated.tm_hour, fields.tm_min == stated.tm_min,
            fields.tm_sec == stated.tm_sec
        else { return nil }
        var width: Int64 = hour == nil ? 86_400 : second == nil ? 60 : 1
        width *= 1_000_000_000
        var offset: Int64 = 0
        if let fraction = match.7 {
            width = (fraction.count..<9).reduce(1) { width, _ in width * 10 }
            offset = (Int64(fraction) ?? 0) * width
        }
        // Checkpoints have times between 1677 and 2262; all others are before or after them.
        let scaled = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        let first = scaled.partialValue.addingReportingOverflow(offset)
        let last = first.partialValue.addingReportingOverflow(width - 1)
        guard !scaled.overflow, !first.overflow, !last.overflow else {
            return seconds < 0 ? Int64.min...Int64.min : Int64.max...Int64.max
        }
        return first.partialValue...last.partialValue
    }
}
