package import CheckpointStore

extension PruneOptions {
    /// Options that leave nothing unused, at any cost.
    package static var everything: PruneOptions {
        var options = PruneOptions(unusedPercentMax: 0)
        options.rewriteByteCountMin = 1
        return options
    }
}
