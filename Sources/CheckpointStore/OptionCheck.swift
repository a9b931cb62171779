package import PackStore

/// Validates the values of options before they are used.
package enum OptionCheck {
    /// The longest time that an option accepts: about 35,000 years.
    package static let longest = Duration.seconds(1 << 40)

    /// Fails with `invalidOption` unless a value is allowed; NaN never is.
    package static func check<T: Comparable>(
        _ name: String, _ value: T, in allowed: ClosedRange<T>
    ) throws(RepositoryError) {
        guard !allowed.contains(value) else { return }
        throw RepositoryError(
            .invalidOption,
            "\(name) is \(value), but must be from \(allowed.lowerBound) to "
                + "\(allowed.upperBound)")
    }
}

extension PruneOptions {
    func check() throws(RepositoryError) {
        try OptionCheck.check("unusedPercentMax", unusedPercentMax, in: 0...100)
    }
}
