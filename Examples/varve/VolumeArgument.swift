import ArgumentParser
import Varve

/// A volume and its image, as `xvda=disk.img`.
struct VolumeArgument: ExpressibleByArgument {
    /// The volume's name: `memory`, or a disk's.
    let name: String
    /// The image.
    let path: PathArgument

    init?(argument: String) {
        guard let sign = argument.firstIndex(of: "="), sign > argument.startIndex,
            let path = PathArgument(argument: String(argument[argument.index(after: sign)...])),
            !path.bytes.isEmpty
        else { return nil }
        name = String(argument[..<sign])
        self.path = path
    }
}

/// The images of an import that has disks, each a regular file or block device.
struct VolumeSources {
    /// The memory; nil: the checkpoint has disks only.
    private(set) var memory: InputFile?
    private(set) var disks: [RawDiskImage] = []
    /// They own the descriptors.
    private var sources: [InputSource] = []
    private let detects: Bool
    private let isJSON: Bool

    /// - Parameters:
    ///   - memory: an image of the memory that was named by itself.
    ///   - arguments: the volumes.
    ///   - detects: whether known containers are refused.
    init(
        _ memory: InputSource?, _ arguments: [VolumeArgument], detects: Bool, isJSON: Bool
    ) throws {
        self.detects = detects
        self.isJSON = isJSON
        if let memory { self.memory = try add(memory, isDisk: false) }
        for argument in arguments {
            let isMemory = argument.name == "memory"
            let file = try add(InputSource(argument.path), isDisk: !isMemory)
            if isMemory {
                guard self.memory == nil else { throw ToolError("the memory is named twice") }
                self.memory = file
            } else {
                disks.append(RawDiskImage(name: argument.name, source: file))
            }
        }
    }

    private mutating func add(_ source: InputSource, isDisk: Bool) throws -> InputFile {
        sources.append(source)
        guard let file = try source.anyOrderFile() else {
            throw ToolError(
                "\(source.name) is read in order, and volumes are read in any; name a regular "
                    + "file or a block device")
        }
        let head = try source.peek(ImageContainer.byteCount)
        if detects, let container = head.withUnsafeBytes({ ImageContainer(detecting: $0) }),
            !(isDisk && container.mayBeDisk)
        {
            throw ToolError(
                "\(source.name) is \(container.name), not a raw image: "
                    + (container.holdsDisk
                        ? "convert it with 'qemu-img convert -O raw'" : container.remedy)
                    + "; --format raw imports its bytes unchanged")
        }
        if source.isDeviceInUse {
            Failure.notice(
                "\(source.name) is in use: it is mounted, or part of another device; what is "
                    + "written meanwhile may be in the image in part; import a snapshot of it",
                code: "deviceInUse", isJSON: isJSON)
        }
        return file
    }
}
