import Varve

/// A domain that a service takes checkpoints of.
struct ServedDomain: Hashable, Sendable {
    let name: String
    let domainID: UInt32
    let uuid: [UInt8]
    /// Its memory is read through libxenguest's stream.
    var isPV = false
}

extension ServedDomain: CustomStringConvertible {
    var description: String { "domain \(name) (\(domainID))" }
}

/// What a service tells of a checkpoint.
struct TakenCheckpoint: Hashable, Sendable {
    let id: String
    let timeNanoseconds: Int64
    let dirtyPageCount: Int
    let addedByteCount: Int
    let downtime: Duration
    let lateness: Duration
}

/// Finds the domain of a service, and takes charge of it; methods block.
protocol DomainSource: Sendable {
    /// The domain, if it runs; nil if there is none, or if it has ended or is paused.
    func find() throws -> ServedDomain?
    /// False once a domain has ended: it is gone, has crashed, or has shut down.
    func isUp(_ domain: ServedDomain) throws -> Bool
    /// Takes charge of a domain.
    func open(_ domain: ServedDomain) throws -> any DomainCheckpointer
}

/// Takes checkpoints of one domain, which it owns until it is released.
protocol DomainCheckpointer: AnyObject, Sendable {
    /// What is worth knowing about its beginning.
    var remarks: [String] { get }
    /// The checkpoint that all memory is compared with at first; nil if the lineage is new.
    var resumesAfter: String? { get }
    /// How many thinnings of the lineage have failed, and why the last one did.
    var failedThinnings: (count: Int, last: String)? { get }

    /// Takes checkpoints until it is cancelled, or throws when one fails; it can be called again.
    ///
    /// - Parameters:
    ///   - interval: from one checkpoint to the next.
    ///   - cancellation: ends this after the checkpoint in progress.
    ///   - handler: called for each event, one call at a time.
    func run(
        every interval: Duration, until cancellation: Cancellation,
        handler: @escaping @Sendable (ServiceEvent) -> Void
    ) throws

    /// Ends it; the domain runs.
    func close()
}

/// What happens in a schedule.
enum ServiceEvent: Sendable {
    case taken(TakenCheckpoint)
    /// A capture stored nothing, and the next one compares every page.
    case auditMissed(String)
}
