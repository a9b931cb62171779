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

    /// - Parameters:
    ///   - memory: an image of the memory that was named by itself.
    ///   - arguments: the volumes.
    init(_ memory: InputSource?, _ arguments: [VolumeArgument]) throws {
        if let memory { self.memory = try add(memory) }
        for argument in arguments {
            let file = try add(InputSource(argument.path))
            if argument.name == "memory" {
                guard self.memory == nil else { throw ToolError("the memory is named twice") }
                self.memory = file
            } else {
                disks.append(RawDiskImage(name: argument.name, source: file))
            }
        }
    }

    private mutating func add(_ source: InputSource) throws -> InputFile {
        sources.append(source)
        guard let file = try source.anyOrderFile() else {
            throw ToolError(
                "\(source.name) is read in order, and volumes are read in any; name a regular "
                    + "file or a block device")
        }
        let head = try source.peek(ImageContainer.byteCount)
        if let container = head.withUnsafeBytes({ ImageContainer(detecting: $0) }),
            container.holdsDisk
        {
            throw ToolError(
                "\(source.name) is \(container.name), not a raw image: convert it with "
                    + "'qemu-img convert -O raw'")
        }
        return file
    }
}
