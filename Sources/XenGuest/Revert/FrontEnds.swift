import Glibc
import GuestModel

// A device has two ends that talk through xenstore: the front end in the guest, and the back end in
// dom0. Each has a node `state` with a number of xen/include/public/io/xenbus.h:
//
//   1 Initialising   2 InitWait   3 Initialised   4 Connected   5 Closing   6 Closed
//
// The front end's node is written here in the guest's name, while the guest stands still:
//
//   6   the back end ends its requests, unmaps the guest's memory, and becomes Closed. It keeps the
//       disk or the bridge's port, because `online` stays 1. Linux's blkback says Closed even if
//       requests are under way, keeps what it has mapped, and tries again when the node is written
//       again: so only the guest's grant table tells when it has let go.
//   1   the back end becomes InitWait, and waits for a front end to connect

/// The devices of a domain that stay with it in a revert: disks and network interfaces that dom0
/// provides.
struct FrontEnds: Sendable {
    private struct Device: Sendable {
        /// As `vbd/51712`.
        let name: String
        let front: String
        let back: String
        let wasConnected: Bool
        let isWritableDisk: Bool
    }

    enum Back: String {
        case initWait = "2"
        case connected = "4"
        case closed = "6"
    }

    /// How often the state of a back end is read.
    private static let pollMicroseconds: UInt32 = 1000
    /// How long to wait before a back end that holds memory is told again.
    private static let pushInterval = Duration.milliseconds(10)
    private static let kinds = ["vbd", "vif"]

    private let domainID: UInt32
    private let devices: [Device]

    var isEmpty: Bool { devices.isEmpty }
    var hasWritableDisks: Bool { devices.contains(where: \.isWritableDisk) }

    /// Kinds of front ends that are not devices in this sense: their rings are set up by the
    /// toolstack.
    static let builtIn: Set<String> = ["console", "suspend"]

    /// Finds the devices in dom0's part of xenstore, to which the domain cannot write.
    ///
    /// Throws `unsupported` if one is of another kind, or is provided by another domain.
    init(of domainID: UInt32, _ calls: any XenCalls) throws(GuestError) {
        self.domainID = domainID
        var devices: [Device] = []
        for kind in FrontEnds.kinds {
            let root = "/local/domain/0/backend/\(kind)/\(domainID)"
            for number in try calls.list(root) {
                let front = "/local/domain/\(domainID)/device/\(kind)/\(number)"
                let back = "\(root)/\(number)"
                // A device that is being removed has no front end any more.
                guard try calls.read("\(back)/frontend") == front,
                    try calls.read("\(back)/online") == "1"
                else { continue }
                let isDisk = kind == "vbd"
                let mode = isDisk ? try calls.read("\(back)/mode") : nil
                let state = try calls.read("\(back)/state")
                devices.append(
                    Device(
                        name: "\(kind)/\(number)", front: front, back: back,
                        wasConnected: state == Back.connected.rawValue,
                        isWritableDisk: isDisk && mode != "r"))
            }
        }
        self.devices = devices
        let known = Set(devices.map(\.name))
        var others: [String] = []
        let root = "/local/domain/\(domainID)/device"
        for kind in try calls.list(root) where !FrontEnds.builtIn.contains(kind) {
            others += try calls.list("\(root)/\(kind)").map { "\(kind)/\($0)" }
                .filter { !known.contains($0) }
        }
        guard others.isEmpty else {
            throw GuestError(
                code: .unsupported,
                message: "domain \(domainID) has devices that cannot stay in a revert in place ("
                    + others.joined(separator: ", ") + "): only disks of blkback and network "
                    + "interfaces of netback can; replace the domain (--replace)")
        }
    }

    /// Asks all back ends to close.
    func beginClosing(_ calls: any XenCalls) throws(GuestError) {
        for device in devices { try calls.write("\(device.front)/state", "6") }
    }

    /// Waits until all back ends have closed, and none has memory of the domain mapped.
    ///
    /// Asks them again, too: a back end that holds memory tries again then.
    func close(by deadline: ContinuousClock.Instant, _ calls: any XenCalls) throws(GuestError) {
        while true {
            let pushed = ContinuousClock.now
            try awaitState(.closed, devices, by: deadline, calls)
            let grants = try calls.grantTable(domainID).dropFirst(GrantEntry.reservedCount)
            guard grants.contains(where: \.isMapped) else { return }
            guard ContinuousClock.now < deadline else {
                throw GuestError(
                    code: .timedOut,
                    message: "a back end of domain \(domainID) still uses the domain's memory: "
                        + "requests to slow or failing storage do not end")
            }
            while ContinuousClock.now - pushed < FrontEnds.pushInterval {
                system_sleep(microseconds: FrontEnds.pollMicroseconds)
            }
            try beginClosing(calls)
        }
    }

    /// Asks all back ends to wait for a front end.
    func open(_ calls: any XenCalls) throws(GuestError) {
        for device in devices { try calls.write("\(device.front)/state", "1") }
    }

    /// Waits until they do.
    func awaitOpen(
        by deadline: ContinuousClock.Instant, _ calls: any XenCalls
    ) throws(GuestError) {
        try awaitState(.initWait, devices, by: deadline, calls)
    }

    /// The devices that the running guest has not connected again by a deadline.
    ///
    /// - Parameter all: also those that were not connected before.
    func unconnected(
        by deadline: ContinuousClock.Instant, all: Bool, _ calls: any XenCalls
    ) -> [String] {
        var left = devices.filter { all || $0.wasConnected }
        while !left.isEmpty {
            left.removeAll { device in
                (try? calls.read("\(device.back)/state")) == Back.connected.rawValue
            }
            guard !left.isEmpty, ContinuousClock.now < deadline else { break }
            system_sleep(microseconds: FrontEnds.pollMicroseconds)
        }
        return left.map(\.name)
    }

    private func awaitState(
        _ state: Back, _ devices: [Device], by deadline: ContinuousClock.Instant,
        _ calls: any XenCalls
    ) throws(GuestError) {
        for device in devices {
            while true {
                let now = try calls.read("\(device.back)/state")
                if now == state.rawValue { break }
                guard ContinuousClock.now < deadline else {
                    throw GuestError(
                        code: .timedOut,
                        message: "the back end of \(device.name) of domain \(domainID) is in state "
                            + "\(now ?? "none"), and not \(state.rawValue); look at the kernel's "
                            + "log (dmesg)")
                }
                system_sleep(microseconds: FrontEnds.pollMicroseconds)
            }
        }
    }
}
