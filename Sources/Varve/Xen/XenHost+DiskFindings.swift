import GuestDisks
public import GuestModel
import SystemPackage
public import XenGuest
import XenStream

extension XenHost {
    /// How each disk of a domain is cut, or why it cannot be, and what cuts have left.
    ///
    /// Asks device-mapper and the file systems, and changes nothing.
    ///
    /// - Parameter options: limits of thin pools, and the directory of the cuts.
    public func diskFindings(
        of domain: Domain, options: XenDiskOptions = XenDiskOptions()
    ) throws(GuestError) -> [Finding] {
        try DiskDoctor(finder: XenDiskFinder(host: self, options: options)).findings(of: domain)
    }
}

/// Examines the disks of domains.
struct DiskDoctor {
    let finder: XenDiskFinder

    func findings(of domain: XenHost.Domain) throws(GuestError) -> [XenHost.Finding] {
        var found: [XenHost.Finding] = []
        let hooked: Set<[UInt8]>
        do throws(GuestError) {
            hooked = try finder.hooked(finder.writable(domain), of: domain)
        } catch {
            hooked = []
            found.append(
                XenHost.Finding(subject: "disk command", grade: .missing, text: error.message))
        }
        for disk in try finder.host.disks(of: domain) {
            let (grade, text) =
                domain.kind != .pv && hooked.contains(Array(disk.name.utf8))
                ? (.good, "is cut by \(PrintableText.escape(finder.options.command[0]))")
                : DiskDoctor.examine(disk, of: domain.kind, finder.options, finder.mapper)
            found.append(XenHost.Finding(subject: "disk \(disk.name)", grade: grade, text: text))
        }
        if try finder.host.hasForeignDisks(domain) {
            found.append(
                XenHost.Finding(
                    subject: "disks", grade: .missing,
                    text: "\(XenDiskFinder.foreign); \(XenDiskFinder.foreignRemedy)"))
        }
        return found + leftovers(of: domain)
    }

    /// How a disk is cut, or why it cannot be.
    static func examine(
        _ disk: XenDisk, of kind: XenGuestKind, _ options: XenDiskOptions,
        _ mapper: any DeviceMapperCalls
    ) -> (grade: XenHost.Finding.Grade, text: String) {
        let path = PrintableText.escape(disk.path)
        guard !disk.isReadOnly && !disk.isCDROM else {
            return (.good, "read-only: in no checkpoint, and restored domains get \(path) as it is")
        }
        guard kind != .pv else {
            return (
                .missing, "a PV domain's disks cannot be in a checkpoint; use --no-disks, or PVH"
            )
        }
        do throws(GuestError) {
            switch disk.backend {
            case .blockDevice:
                if let file = try LoopDevice.file(of: FilePath(disk.path), named: disk.name) {
                    return try examine(file)
                }
                let fill = try DiskCheck.thinVolume(
                    .init(name: disk.name, device: FilePath(disk.path)),
                    options: options.thin, calls: mapper)
                return (
                    .good,
                    "\(path) is a thin volume in the pool \(fill.pool), of which "
                        + "\(percent(fill.dataPercent)) of the data and "
                        + "\(percent(fill.metadataPercent)) of the metadata are in use"
                )
            case .file:
                return try examine(.init(name: disk.name, path: FilePath(disk.path)))
            case .rawInQEMU, .other:
                return (
                    .missing,
                    "\(path) \(XenDiskFinder.obstacle(disk)); \(XenDiskFinder.remedy)"
                )
            }
        } catch {
            return (.missing, error.message)
        }
    }

    private static func examine(
        _ file: ReflinkDisks.File
    ) throws(GuestError) -> (grade: XenHost.Finding.Grade, text: String) {
        try DiskCheck.file(file)
        let path = PrintableText.escape(file.path.string)
        return (.good, "\(path) is a raw file, which is cut by a reflink")
    }

    private static func percent(_ value: Double) -> String { "\((value * 10).rounded() / 10) %" }

    private func leftovers(of domain: XenHost.Domain) -> [XenHost.Finding] {
        do throws(GuestError) {
            return try DiskLeftover.found(in: finder.directory(of: domain)).map { leftover in
                let parts = leftover.parts.joined(separator: ", ")
                let (grade, text): (XenHost.Finding.Grade, String) =
                    if leftover.isOwned {
                        (.good, "in use by a process that runs")
                    } else if leftover.isWhole {
                        (.good, "kept: the next checkpoint continues from it, or drops it")
                    } else {
                        (.limited, "left behind: the next checkpoint drops it")
                    }
                return XenHost.Finding(
                    subject: leftover.name, grade: grade, text: "\(text): \(parts)")
            }
        } catch {
            return [XenHost.Finding(subject: "cuts", grade: .limited, text: error.message)]
        }
    }
}
