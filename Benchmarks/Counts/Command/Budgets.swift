/// One count and its budget.
struct Count {
    let name: String
    let value: Double
    /// The largest allowed value.
    let budget: Double

    var isWithin: Bool { value <= budget }
}

/// The counts of a run, in order.
///
/// They count work, not time: the same on a busy machine as on an idle one, except for how batches
/// are distributed to the workers.
struct Budgets {
    private(set) var counts: [Count] = []

    mutating func add(_ name: String, _ value: Double, atMost budget: Double) {
        counts.append(Count(name: name, value: value, budget: budget))
    }

    mutating func add(_ name: String, _ value: Int, atMost budget: Int) {
        add(name, Double(value), atMost: Double(budget))
    }

    var isWithin: Bool { counts.allSatisfy(\.isWithin) }
}
