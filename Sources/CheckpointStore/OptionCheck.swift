/// Checks that values of options are allowed, before anything is done by them.
package enum OptionCheck {
    /// The longest time that an option can name: some 35,000 years.
    package static let longest = Duration.seconds(1 << 40)

    /// Fails with `invalidOption` unless a value is allowed; what is no number never is.
    package static func check<T: Comparable>(
        _ name: String, _ value: T, in allowed: ClosedRange<T>
    ) throws(RepositoryError) {
        guard !allowed.contains(value) else { return }
        throw RepositoryError(
            .invalidOption,
            "\(name) is \(value), and must be from \(allowed.lowerBound) to "
                + "\(allowed.upperBound)")
    }
}

extension PruneOptions {
    func check() throws(RepositoryError) {
        try OptionCheck.check("unusedPercentMax", unusedPercentMax, in: 0...100)
    }
}

extension VerifyDepth {
    func check() throws(RepositoryError) {
        guard case .sample(let share, _) = self else { return }
        try OptionCheck.check("the share of a sample", share, in: 0...1)
    }
}

extension RetentionPolicy {
    /// Fails with `invalidOption` if a number is negative, or if it keeps nothing.
    package func check() throws(RepositoryError) {
        let counts = [
            ("keepLast", keepLast), ("keepSecondly", keepSecondly), ("keepMinutely", keepMinutely),
            ("keepHourly", keepHourly), ("keepDaily", keepDaily), ("keepWeekly", keepWeekly),
            ("keepMonthly", keepMonthly),
        ]
        for (name, count) in counts { try OptionCheck.check(name, count, in: 0...Int.max) }
        if let keepWithin {
            try OptionCheck.check("keepWithin", keepWithin, in: .zero...OptionCheck.longest)
        }
        guard !isEmpty else {
            throw RepositoryError(
                .invalidOption,
                "a retention policy that keeps nothing is a mistake; give keepLast or another rule")
        }
    }
}
