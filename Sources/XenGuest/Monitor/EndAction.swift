import GuestModel
import XenStream

/// What a domain's configuration says of its end: `libxl_action_on_shutdown` of libxl_types.idl.
package enum EndAction: String, CaseIterable, Sendable {
    case destroy
    case restart
    case renameRestart = "rename_restart"
    case preserve
    case coredumpDestroy = "coredump_destroy"
    case coredumpRestart = "coredump_restart"
    case softReset = "soft_reset"

    /// What a configuration says; nil if it says what is not known here.
    ///
    /// - Parameters:
    ///   - reason: not `suspend`.
    ///   - configuration: libxl's JSON, which leaves out a field that has its initial value:
    ///     `destroy`.
    init?(for reason: ShutdownReason, in configuration: XenConfiguration) {
        let field: String
        switch reason {
        case .powerOff: field = "on_poweroff"
        case .reboot: field = "on_reboot"
        case .crash: field = "on_crash"
        case .watchdog: field = "on_watchdog"
        case .softReset: field = "on_soft_reset"
        // As xl does with a reason that it does not know.
        case .suspend, .other:
            self = .destroy
            return
        }
        guard let text = configuration.text(of: field) else {
            self = .destroy
            return
        }
        self.init(rawValue: text.replacing("-", with: "_"))
    }

    var dumpsCore: Bool { self == .coredumpDestroy || self == .coredumpRestart }

    var startsAgain: Bool {
        self == .restart || self == .renameRestart || self == .coredumpRestart
    }
}
