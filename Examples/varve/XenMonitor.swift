import ArgumentParser
import Glibc
import Varve

struct XenMonitorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "monitor",
        abstract: "Carries out what a domain's configuration says of its end.",
        discussion: """
            xl leaves a process that carries out on_poweroff, on_reboot, on_crash, on_watchdog and \
            on_soft_reset, but it ends as soon as the domain suspends, for a checkpoint or for \
            'xl save -c'. 'varve xen checkpoint' and 'varve xen revert' start this command in its \
            place. Start it by hand for a domain of which 'varve xen doctor' says that it has none.

            It ends when the domain is gone, and goes on with the new one when it was started \
            again. '^C' ends it as well.
            """)

    @Argument(help: "The domain's ID or name.")
    var domain: String

    @Flag(help: .hidden)
    var background = false

    /// Has systemd start it, outside of the sandbox and the control group of the caller's service.
    @Flag(help: .hidden)
    var startUnit = false

    func run() throws {
        try reporting {
            if startUnit { return try start() }
            let found = try XenHost().domain(named: domain)
            if background { try redirect(found.name) }
            let end = try XenMonitor.run(domain: found.domainID, announcesReady: background) {
                Output.standardError("varve: \($0)")
            }
            if end == .alreadyMonitored, !background {
                Output.standardError(
                    "varve: another monitor of domain \(found.name) runs already")
            }
        }
    }

    /// Starts the unit of this command, and announces that as a monitor announces itself.
    private func start() throws {
        let unit = "varve-monitor@\(domain).service"
        let status = try ChildProcess(["systemctl", "start", unit]).wait()
        guard status == 0 else {
            throw ToolError("systemctl cannot start \(unit); 'journalctl -u \(unit)' may tell why")
        }
        try Output.write("+", to: STDOUT_FILENO)
    }

    /// Standard error becomes a log: the terminal of the process that started this is not its own.
    private func redirect(_ name: String) throws {
        let path = "/var/log/xen/varve-\(name.isEmpty ? domain : name).log"
        let file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0o600)
        guard file >= 0, dup2(file, STDERR_FILENO) >= 0 else {
            throw ToolError("\(path), the monitor's log, cannot be opened: \(Output.reason())")
        }
        close(file)
    }
}
