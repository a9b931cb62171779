package import PackStore

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
