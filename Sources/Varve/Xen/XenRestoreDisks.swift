import CheckpointEngine
import CheckpointIndex
import CheckpointStore
import Glibc
public import GuestDisks
import GuestModel
import LinuxGuest
public import SystemPackage
import XenStream

/// Where the disks of a new domain come from.
public enum XenRestoreDisks: Sendable {
    /// New sparse raw files in a directory, `DOMAIN-DISK.img`; each block is verified.
    ///
    /// A file that exists already is not replaced, and the start is refused.
    case files(in: FilePath)
    /// New thin volumes in a pool of device-mapper, `DOMAIN-DISK`; each block is verified.
    ///
    /// They stay when the domain ends, and are not active after a reboot.
    case thinVolumes(in: ThinVolumes)
    /// Writable snapshots of the cut from which the checkpoint's disks were read, made in
    /// milliseconds whatever the size.
    ///
    /// The cut must still stand: it is that of the newest checkpoint of an open session, or was
    /// kept (`CaptureOptions.keepsDiskCut`). `of` is a group with the state directory in which it
    /// is noted, that of the domain itself; it needs no volumes. All disks must be thin volumes in
    /// the pool `in`.
    case snapshots(of: ThinDisks, in: ThinVolumes)
    /// None: the configuration's disks as they are now.
    ///
    /// Right only if they hold what the checkpoint's do, which is not checked: a guest that
    /// continues over another state of its disks destroys its file systems.
    case unchecked
}

/// The disks of one start, made before the domain, and removed again if that fails.
struct RestoredDisks {
    let repository: Repository
    let checkpoint: Checkpoint
    /// The new domain's name.
    let domain: String

    /// A disk and where it is.
    struct Made {
        let name: String
        let path: FilePath
        let remove: () -> Void
    }

    /// Makes all disks; when it throws, none is left.
    func make(
        _ target: XenRestoreDisks, _ cancellation: Cancellation?, _ progress: ProgressHandler?
    ) throws -> [Made] {
        var made: [Made] = []
        do {
            for volume in checkpoint.disks {
                made.append(try make(volume, target, cancellation, progress))
            }
        } catch {
            for disk in made { disk.remove() }
            throw error
        }
        return made
    }

    private func make(
        _ volume: Volume, _ target: XenRestoreDisks, _ cancellation: Cancellation?,
        _ progress: ProgressHandler?
    ) throws -> Made {
        guard let disk = volume.disk else { preconditionFailure("a disk is no memory") }
        let name = RestoredDisks.plain("\(domain)-\(disk.name)")
        switch target {
        case .files(let directory):
            let path = try directory.appending("\(name).img").absolute()
            let file = try ImageFile(
                creating: path, byteCount: volume.pageCount * Page.byteCount, disk: disk)
            do {
                try repository.restore(
                    checkpoint, volume: disk.name, into: file, cancellation: cancellation,
                    progress: progress)
                try file.finish()
            } catch {
                file.abandon()
                throw error
            }
            return Made(name: disk.name, path: path) { ImageFile.remove(path) }
        case .thinVolumes(let pool):
            let path = try pool.createVolume(named: name, byteCount: disk.byteCount)
            do {
                // Without its node an ordinary file would be written in /dev.
                if case .file = try OutputPlace(path) {
                    throw GuestError(
                        code: .unavailable,
                        message: "the volume \(name) was made, but \(path) is no device; see "
                            + "that udev or libdevmapper makes it")
                }
                let device = try ImageFile(creating: path, disk: disk, isZeroed: true)
                try repository.restore(
                    checkpoint, volume: disk.name, into: device, cancellation: cancellation,
                    progress: progress)
                try device.finish()
            } catch {
                try? pool.removeVolume(named: name)
                throw error
            }
            return Made(name: disk.name, path: path) { try? pool.removeVolume(named: name) }
        case .snapshots(let group, let pool):
            guard let cutName = checkpoint.cutName else {
                throw GuestError(
                    code: .unavailable,
                    message: "checkpoint \(checkpoint.id.short) names no cut of its disks; write "
                        + "its disks from the repository")
            }
            let path = try pool.createSnapshot(
                named: name, ofDisk: disk.name, inCut: cutName, of: group)
            return Made(name: disk.name, path: path) { try? pool.removeVolume(named: name) }
        case .unchecked: preconditionFailure("there is nothing to make")
        }
    }

    /// A name that a file and a volume can have: bytes that are no letters, digits or `.-_` are
    /// written as `=XX`.
    static func plain(_ name: String) -> String {
        var plain = ""
        for byte in name.utf8 {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                UInt8(ascii: "0")...UInt8(ascii: "9"):
                plain.unicodeScalars.append(Unicode.Scalar(byte))
            case _ where ".-_".utf8.contains(byte):
                plain.unicodeScalars.append(Unicode.Scalar(byte))
            default: plain += "=" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
            }
        }
        return plain
    }
}

extension FilePath {
    /// The path as `xl` sees it, which works in another directory.
    fileprivate func absolute() throws(GuestError) -> FilePath {
        if isAbsolute { return self }
        var buffer = [CChar](repeating: 0, count: Int(PATH_MAX))
        guard getcwd(&buffer, buffer.count) != nil else {
            throw GuestError(
                code: .unavailable,
                message: "the working directory is gone, so \(self) cannot be found; name an "
                    + "absolute path")
        }
        return FilePath(platformString: buffer).pushing(self)
    }
}

/// Puts the paths of restored disks into a configuration.
enum DiskPaths {
    /// Throws unless the configuration has the disks, and can be changed.
    static func check(_ names: [String], in configuration: [UInt8]?) throws {
        guard let configuration else {
            throw GuestError(
                code: .unsupported,
                message: "the checkpoint has no configuration that its disks could be written "
                    + "into; give one with --config")
        }
        guard try XenConfigurationText(configuration).isJSON else {
            throw GuestError(
                code: .unsupported,
                message: "disks cannot be written into an xl.cfg; give --config as JSON, or leave "
                    + "it out")
        }
        try XenConfiguration(configuration).checkDisks(names)
    }

    static func set(_ disks: [RestoredDisks.Made], in json: [UInt8]) throws -> [UInt8] {
        var configuration = XenConfiguration(json)
        for disk in disks { try configuration.setDisk(disk.name, to: disk.path.string) }
        return configuration.json
    }
}
