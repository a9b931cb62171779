public import GuestModel

/// A disk that dom0 gives to a domain.
public struct XenDisk: Hashable, Sendable {
    /// How its back end accesses it.
    public enum Backend: Hashable, Sendable {
        /// blkback on a block device.
        case blockDevice
        /// blkback on a file, through a loop device.
        case file
        /// A raw file, or a block device, in a QEMU process.
        case rawInQEMU
        /// Anything else: the format or type that xenstore names.
        case other(String)
    }

    /// The name in the domain's configuration, as `xvda`.
    public let name: String
    /// How its back end accesses it.
    public let backend: Backend
    /// The device or file in dom0; empty if none is inserted.
    public let path: String
    /// True if the domain cannot write to it.
    public let isReadOnly: Bool
    /// True for a CD-ROM drive.
    public let isCDROM: Bool
}

extension XenHost {
    /// The disks that dom0 gives to a domain, by their names.
    ///
    /// They are read from dom0's part of xenstore, to which the domain cannot write. Disks of a
    /// driver domain are not among them (`hasForeignDisks`). Blocks for some calls of xenstore.
    public func disks(of domain: Domain) throws(GuestError) -> [XenDisk] {
        try backends(of: domain).map(\.disk).sorted { $0.name < $1.name }
    }

    /// True if the domain has a disk that is not among `disks`: another domain than dom0 provides
    /// it, or it has a transport that is not known here.
    public func hasForeignDisks(_ domain: Domain) throws(GuestError) -> Bool {
        let known = Set(try backends(of: domain).map(\.path))
        for kind in ["vbd", "virtio_disk"] {
            let root = "/local/domain/\(domain.domainID)/device/\(kind)"
            for device in try calls.list(root) {
                if let backend = try calls.read("\(root)/\(device)/backend") {
                    if known.contains(backend) { continue }
                    // One that was added or removed meanwhile is what dom0's part says now.
                    if try backends(of: domain).contains(where: { $0.path == backend }) { continue }
                }
                if try calls.list(root).contains(device) { return true }
            }
        }
        return false
    }

    func backends(
        of domain: Domain
    ) throws(GuestError) -> [(path: String, disk: XenDisk)] {
        var found: [(String, XenDisk)] = []
        for kind in ["vbd", "vbd3", "qdisk"] {
            let root = "/local/domain/0/backend/\(kind)/\(domain.domainID)"
            for device in try calls.list(root) {
                let path = "\(root)/\(device)"
                if let disk = try disk(path, kind) { found.append((path, disk)) }
            }
        }
        return found
    }

    private func disk(_ path: String, _ kind: String) throws(GuestError) -> XenDisk? {
        // A device that is being removed has no name any more.
        guard let name = try calls.read("\(path)/dev"), !name.isEmpty else { return nil }
        let mode = try calls.read("\(path)/mode") ?? ""
        let type = try calls.read("\(path)/type") ?? ""
        let params = try calls.read("\(path)/params") ?? ""
        let isCDROM = try calls.read("\(path)/device-type") == "cdrom"
        // Removed while it was read: what was missing says nothing.
        guard try calls.read("\(path)/dev") == name else { return nil }
        let (backend, file) = XenHost.backend(kind, type, params)
        return XenDisk(
            name: name, backend: backend, path: file,
            // A mode that is not known must not leave a disk out.
            isReadOnly: mode == "r" || mode == "ro", isCDROM: isCDROM)
    }

    /// What a back end's nodes say: xen/include/public/io/blkif.h, and `params` as libxl writes it
    /// (libxl_disk.c).
    private static func backend(
        _ kind: String, _ type: String, _ params: String
    ) -> (XenDisk.Backend, String) {
        guard kind == "qdisk" else {
            switch type {
            // libxl calls a file so, too (`libxl__try_phy_backend`); the script makes it a device.
            case "phy", "": return (system_isRegularFile(params) ? .file : .blockDevice, params)
            case "file": return (.file, params)
            default: return (.other(type), params)
            }
        }
        // `FORMAT:PATH`.
        guard let colon = params.firstIndex(of: ":") else { return (.other(type), params) }
        let format = params[..<colon]
        let file = String(params[params.index(after: colon)...])
        return (["aio", "raw"].contains(format) ? .rawInQEMU : .other(String(format)), file)
    }
}
