import ArgumentParser
import Glibc
import Varve

struct Mount: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "mount",
        abstract: "Mounts a disk of a checkpoint, for reading.",
        discussion: """
            The file system's journal is replayed to a temporary file first, so what is read is \
            what the guest would find after a power failure at the checkpoint; the checkpoint \
            stays as it is, and is held until 'varve unmount DIRECTORY'.

            The kernel of this host reads what the guest wrote. Mount only disks of guests that \
            you trust, and read others in a virtual machine, such as guestfish's. UUIDs and labels \
            are those of the running guest's disk. Nothing else of the disk is activated: no \
            partitions, no volume group. Programs cannot be started from it, and its devices and \
            setuid bits have no effect.

            It needs root, nbdkit, nbdfuse, and the kernel's loop devices and FUSE.
            """)

    @Argument(help: "The repository.")
    var store: StoreArgument

    @Argument(help: "The checkpoint.")
    var checkpoint: String

    @Argument(
        help: ArgumentHelp("An existing directory.", valueName: "directory"),
        completion: .directory)
    var directory: String

    @Option(help: "The disk to mount; its name may be left out if there is one only.")
    var volume: String?

    @Option(help: "The partition of the disk to mount, from 1 up.")
    var partition: Int?

    @OptionGroup var nbdkit: NbdkitOptions

    func validate() throws {
        if let partition, partition < 1 { throw ValidationError("--partition is a number from 1") }
    }

    func run() throws {
        try reporting {
            let repository = try Reading.open(store)
            let found = try repository.checkpoint(named: checkpoint)
            let disk = try disk(of: found)
            try checkHost()
            let place = try MountPlace.create()
            do {
                let work = try mount(disk, of: found, in: place)
                try Output.report(work) { try Output.line(work) }
            } catch {
                place.abandon()
                throw error
            }
        }
    }

    /// The volume to mount.
    private func disk(of found: Checkpoint) throws -> String {
        if let volume {
            let known = try found.volume(named: volume)
            guard known.isDisk else {
                throw ToolError("the memory has no file system; name a disk")
            }
            return known.name
        }
        let disks = found.volumes.filter(\.isDisk).map(\.name)
        guard disks.count == 1 else {
            throw ToolError(
                disks.isEmpty
                    ? "checkpoint \(found.id.short) has no disk"
                    : "name one of the disks by --volume: \(disks.joined(separator: ", "))")
        }
        return disks[0]
    }

    /// Throws a sentence with the remedy if this host cannot do it.
    private func checkHost() throws {
        guard geteuid() == 0 else {
            throw ToolError(
                "only root can mount; without it, 'varve serve' and guestmount or fuse2fs do")
        }
        var status = stat()
        guard stat(directory, &status) == 0 else {
            throw ToolError("\(directory) cannot be used: \(Output.reason())")
        }
        guard status.st_mode & S_IFMT == S_IFDIR else {
            throw ToolError("\(directory) is no directory")
        }
        guard try MountTable.source(mountedAt: directory) == nil else {
            throw ToolError(
                "something is mounted at \(directory) already; unmount it first, or name another "
                    + "directory")
        }
        try nbdkit.check()
        try Tools.require("nbdfuse", package: "libnbd-bin")
        for name in ["losetup", "mount", "umount"] { try Tools.require(name, package: "mount") }
        try Tools.require("blkid", package: "util-linux")
        guard access("/dev/fuse", R_OK | W_OK) == 0 else {
            throw ToolError("/dev/fuse cannot be used: \(Output.reason()); load the module fuse")
        }
    }

    /// - Returns: a sentence about what was mounted.
    private func mount(
        _ disk: String, of found: Checkpoint, in place: MountPlace
    ) throws -> String {
        let image = try expose(disk, of: found, in: place)
        let type = try FileSystemType.find(in: image, disk, isPartition: partition != nil)
        // Both inherit the lock: if this process is killed, they still have their place.
        let device =
            try Tools.run(["losetup", "--find", "--show", image], inherited: place.lock).last ?? ""
        // Unless something uses it by then, the device goes away with this command.
        defer { _ = try? Tools.run(["losetup", "--detach", device]) }
        let options = ["ro", "nodev", "nosuid", "noexec"] + type.options
        try Tools.run(
            [
                "mount", "-t", type.rawValue, "-o", options.joined(separator: ","), "--", device,
                directory,
            ],
            inherited: place.lock)
        return "mounted \(disk) of \(found.id.short) (\(type.rawValue)) at \(directory); "
            + "'varve unmount \(directory)' ends that"
    }

    /// Makes the disk, or one partition of it, a file that can be written for as long as it is
    /// exposed.
    private func expose(
        _ disk: String, of found: Checkpoint, in place: MountPlace
    ) throws -> String {
        var options = ["--exit-with-parent", "--filter=exportname"]
        var parameters =
            ["store=\(absolutePath(store.description))", "checkpoint=\(found.id)"]
            + NbdkitOptions.only(disk)
        if let partition {
            options.append("--filter=partition")
            parameters.append("partition=\(partition)")
        }
        options.append("--filter=cow")
        let image = "\(place.fuse)/disk"
        let server = try ChildProcess(
            ["nbdfuse", image, "--command"] + nbdkit.command(["-s"] + options, parameters),
            collectsOutput: true, inNewSession: true)
        // Both programs end by themselves if they cannot go on.
        var status = stat()
        while stat(image, &status) != 0 {
            guard server.isRunning else {
                let reason = server.collectedLines.last { $0.contains("error:") }
                throw ToolError(
                    "\(disk) cannot be served: "
                        + (reason ?? server.collectedLines.last ?? "nbdfuse ended"))
            }
            usleep(20_000)
        }
        return image
    }
}

struct Unmount: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "unmount",
        abstract: "Ends what 'varve mount' began.",
        discussion: """
            While a program uses a file below the directory, this fails, and everything stays as \
            it is. What umount(8) or a killed process left is removed as well.
            """)

    @Argument(
        help: ArgumentHelp("The directory where it is mounted.", valueName: "directory"),
        completion: .directory)
    var directory: String

    func run() throws {
        try reporting {
            guard let place = try MountPlace.find(mountedAt: directory) else {
                guard MountPlace.dropLeftovers() else {
                    throw ToolError("nothing is mounted at \(directory)")
                }
                return Output.standardError(
                    "varve: nothing was mounted at \(directory); what umount(8) had left of "
                        + "mounts was removed")
            }
            do {
                try Tools.run(["umount", "--", directory])
            } catch {
                throw ToolError(
                    "\(ToolError(error).message); if a process or another mount below it uses it, "
                        + "'fuser -vm \(directory)' shows which")
            }
            place.abandon()
        }
    }
}
