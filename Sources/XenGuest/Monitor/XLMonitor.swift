import Glibc
import GuestModel

// `xl create` and `xl restore` leave a process that waits for the domain's end and then does what
// its configuration says (tools/xl/xl_vmcontrol.c). It ends when the domain suspends, whatever the
// cause. It has no socket and no file with its process ID, but it has its log open:
// /var/log/xen/xl-NAME.log.

/// Finds xl's own process that waits for a domain's end.
struct XLMonitor: Sendable {
    var processDirectory = "/proc"
    var logDirectory = "/var/log/xen"

    /// The process of the domain with a name; nil if there is none.
    ///
    /// Reads the descriptors of all processes named `xl`.
    func process(ofDomainNamed name: String) -> Int32? {
        let log = "\(logDirectory)/xl-\(name).log"
        for entry in system_names(in: processDirectory) {
            guard let process = Int32(entry),
                system_text(of: "\(processDirectory)/\(entry)/comm") == "xl\n"
            else { continue }
            let folder = "\(processDirectory)/\(entry)/fd"
            let hasLog = system_names(in: folder).contains {
                system_target(ofLink: "\(folder)/\($0)") == log
            }
            if hasLog { return process }
        }
        return nil
    }
}
