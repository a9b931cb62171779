import CLinux
import Glibc
package import GuestModel
package import SystemPackage

/// What a disk would be cut by, found without a group, and without leaving anything.
package enum DiskCheck {
    /// The pool of a thin volume; throws if it could not be cut now, with the remedy.
    package static func thinVolume(
        _ volume: ThinDisks.Volume, options: ThinDisks.Options,
        calls: any DeviceMapperCalls = LibdevmapperCalls()
    ) throws(GuestError) -> ThinPoolFill {
        // The directory is for a node, if /dev has none.
        let found = try ThinVolume(volume, calls, "/run")
        guard !found.device.isSuspended else { throw ThinDisks.suspended(found.device) }
        try found.pool.check(calls, options)
        let status = try found.pool.status(calls)
        return ThinPoolFill(
            pool: found.pool.device.name, dataPercent: status.dataPercent,
            metadataPercent: status.metadataPercent)
    }

    /// Throws if a raw file could not be cut, with the remedy.
    package static func file(_ file: ReflinkDisks.File) throws(GuestError) {
        let source = try ReflinkDisks.open(file)
        _ = try ReflinkDisks.disk(file, source.status())
        guard let path = system_realpath(file.path) else {
            throw GuestError.call("realpath", file.path.printable)
        }
        // Without a name, so that it goes with its descriptor.
        let clone = try OpenFile(path.removingLastComponent(), O_RDWR | clinux_unnamed_file, 0o600)
        try ReflinkCut.probe(clone, source)
    }

    /// The disks that a command for `HookedDisks` cuts.
    ///
    /// Blocks until it has answered.
    package static func hooked(_ command: [String]) throws(GuestError) -> [GuestDisk] {
        try HookCommand(command).disks(within: HookedDisks.Deadlines().disks)
    }
}

extension DiskLeftover {
    /// What cuts have left in the directory of a guest; nothing is made if there is none.
    package static func found(in directory: FilePath) throws(GuestError) -> [DiskLeftover] {
        var status = stat()
        guard system_lstat(directory, &status) == 0 else {
            if errno == ENOENT { return [] }
            throw GuestError.call("lstat", directory.printable)
        }
        let all =
            try ThinDisks(volumes: [], stateDirectory: directory, guardCommand: []).leftovers()
            + ReflinkDisks(files: [], stateDirectory: directory).leftovers()
            + HookedDisks.leftovers(Journal(directory))
        var found: [DiskLeftover] = []
        // Each kind lists entries that are damaged.
        for leftover in all where !found.contains(leftover) { found.append(leftover) }
        return found
    }
}
