public import GuestModel
public import XenStream

/// A version of the hypervisor: `4.17`.
///
/// Xen restores state that the same version or an earlier one saved. For state of a later version
/// it reports only which record it could not read.
public struct XenVersion: Hashable, Comparable, Sendable, CustomStringConvertible {
    /// The number before the dot.
    public let major: UInt32
    /// The number after the dot.
    public let minor: UInt32

    /// Makes a version from its numbers.
    public init(major: UInt32, minor: UInt32) {
        self.major = major
        self.minor = minor
    }

    /// The version under which a guest's state was saved; nil if its stream was converted from a
    /// legacy one, which does not have it.
    public init?(of guest: XenGuestDescription) {
        guard guest.xenMajor > 0 else { return nil }
        self.init(major: guest.xenMajor, minor: guest.xenMinor)
    }

    /// `4.17`.
    public var description: String { "\(major).\(minor)" }

    /// Whether a version precedes another.
    public static func < (one: XenVersion, other: XenVersion) -> Bool {
        (one.major, one.minor) < (other.major, other.minor)
    }

    /// The versions that Varve is tested with.
    static let tested = [
        XenVersion(major: 4, minor: 17), XenVersion(major: 4, minor: 20),
    ]

    /// Refuses a checkpoint that was taken under a later version than this one.
    ///
    /// State that names no version, or is not a Xen guest's, is not refused here.
    func check(_ state: GuestState) throws(GuestError) {
        guard let guest = XenGuestDescription(state), let origin = XenVersion(of: guest),
            origin > self
        else { return }
        throw GuestError(
            code: .stateRejected,
            message: "this checkpoint was taken under Xen \(origin), this host runs \(self): Xen "
                + "restores only state of the same or an earlier version; restore it on a host "
                + "with Xen \(origin) or later")
    }
}

extension XenHost {
    /// The version of this host's hypervisor.
    public func version() throws(GuestError) -> XenVersion {
        let (major, minor) = try calls.version()
        return XenVersion(major: major, minor: minor)
    }

    /// Throws `GuestError.Code.stateRejected` if this host's Xen is too old for a checkpoint.
    ///
    /// - Parameter state: the checkpoint's state.
    public func checkVersion(of state: GuestState) throws(GuestError) {
        try version().check(state)
    }
}
