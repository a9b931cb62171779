package import GuestModel

// The calls to libxenlight that end and start domains. Only the monitor makes them.

/// What carries out a domain's end; each call blocks as long as libxl takes.
package protocol LifecycleCalls: AnyObject, Sendable {
    /// `libxl_domain_destroy`.
    func destroy(_ domain: UInt32) throws(GuestError)
    /// `libxl_domain_core_dump`.
    func dumpCore(of domain: UInt32, to path: String) throws(GuestError)
    /// `libxl_domain_preserve`: gives a dead domain another name, its own and a suffix, and another
    /// uuid.
    func preserve(
        _ domain: UInt32, _ configuration: [UInt8], suffix: String
    ) throws(GuestError)
    /// `libxl_domain_create_new` and `libxl_domain_unpause`: the new domain's ID.
    func start(_ configuration: [UInt8]) throws(GuestError) -> UInt32
    /// `libxl_domain_soft_reset` and `libxl_domain_unpause`: the guest has loaded another kernel.
    func softReset(_ domain: UInt32, _ configuration: [UInt8]) throws(GuestError)
}
