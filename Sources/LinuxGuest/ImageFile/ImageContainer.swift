/// A known file format other than raw memory, recognized by its first bytes.
///
/// Frame n of a raw image starts at byte 4096 * n. A dump, a disk or a compressed file that is
/// mistaken for one would be stored without complaint if its length is a multiple of 4096, but no
/// guest can be restored from it. Memory may begin with anything, so a raw image may look like one
/// of these; where a format's magic number is short, more bytes are checked.
package struct ImageContainer: Hashable, Sendable {
    /// The name of the format, with its article: `a qcow2 disk image`.
    package let name: String
    /// How to get raw memory from it; part of a sentence.
    package let remedy: String
    /// True if it holds a disk.
    package let holdsDisk: Bool
    /// True if a raw disk may begin like this: it is a swap area.
    package let mayBeDisk: Bool

    /// Bytes that are needed to detect a format.
    package static let byteCount = 4096

    /// Detects the format; nil if it is not a known one.
    ///
    /// - Parameter bytes: the first bytes of the file, up to `byteCount`; all of a shorter file.
    package init?(detecting bytes: UnsafeRawBufferPointer) {
        guard let mark = ImageContainer.marks.first(where: { $0.isIn(bytes) }) else { return nil }
        name = mark.name
        remedy = mark.remedy.rawValue
        holdsDisk = mark.remedy == .disk
        mayBeDisk = mark.mayBeDisk
    }

    // MARK: - Table

    private enum Remedy: String {
        case core = """
            save raw memory instead (QEMU's monitor: pmemsave 0 SIZE FILE), or export a checkpoint \
            as raw or xl
            """
        case dump = "make a raw image of it (layerwriter of Volatility 3), or acquire one"
        case disk = """
            it holds a disk; convert it with qemu-img convert -O raw, and import it with --volume
            """
        case swap = "it is the content of a disk; import it with --volume"
        case saved = "save raw memory instead (QEMU's monitor: pmemsave 0 SIZE FILE)"
        case lime = "acquire it with LiME's format=padded"
        case avml = "convert it with avml-convert --format raw"
        case vmware = "import the .vmem file next to it, which is raw memory"
        case xend = "convert it with convert-legacy-stream of Xen 4.6 or later"
        case gzip = "decompress it first (gzip -dc)"
        case xz = "decompress it first (xz -dc)"
        case zstd = "decompress it first (zstd -dc)"
        case bzip2 = "decompress it first (bzip2 -dc)"
        case lz4 = "decompress it first (lz4 -dc)"
        case lzop = "decompress it first (lzop -dc)"
        case unpack = "unpack it first"
        case part = "it is part of a Varve repository; export a checkpoint of it"
    }

    private struct Mark {
        let name: String
        let remedy: Remedy
        let offset: Int
        let bytes: [UInt8]
        /// Linux keeps it in a swap area, which is a disk or a partition.
        var mayBeDisk: Bool { offset == 4086 }
        /// An additional check of the whole head.
        var condition: (@Sendable (UnsafeRawBufferPointer) -> Bool)?

        init(
            _ name: String, _ remedy: Remedy, _ bytes: [UInt8], at offset: Int = 0,
            if condition: (@Sendable (UnsafeRawBufferPointer) -> Bool)? = nil
        ) {
            self.name = name
            self.remedy = remedy
            self.bytes = bytes
            self.offset = offset
            self.condition = condition
        }

        init(_ name: String, _ remedy: Remedy, _ text: String, at offset: Int = 0) {
            self.init(name, remedy, Array(text.utf8), at: offset)
        }

        func isIn(_ head: UnsafeRawBufferPointer) -> Bool {
            guard head.count >= offset + bytes.count else { return false }
            return head[offset..<offset + bytes.count].elementsEqual(bytes)
                && condition?(head) ?? true
        }
    }

    private static let marks = dumps + savedGuests + disks + compressed + archives

    // System V ABI; makedumpfile's IMPLEMENTATION and diskdump_mod.h; LiME's doc/README; AVML's
    // README; wdm.h and the hibernation format as Volatility has them; xc_core.h of Xen 3.
    private static let dumps: [Mark] = [
        Mark("an ELF file, such as a core", .core, [0x7f] + Array("ELF".utf8)),
        Mark("a dump of kdump", .dump, "KDUMP   "),
        Mark("a dump of diskdump", .dump, "DISKDUMP"),
        Mark("a flattened dump of makedumpfile", .dump, "makedumpfile\0\0\0\0"),
        Mark("a dump of LKCD", .dump, [0xed, 0x23, 0x8f, 0x61, 0x73, 0x01, 0x19, 0xa8]),
        Mark("a dump of LiME", .lime, "EMiL"),
        Mark("a dump of AVML", .avml, "AVML"),
        Mark("a Windows crash dump (64-bit)", .dump, "PAGEDU64"),
        Mark("a Windows crash dump", .dump, "PAGEDUMP"),
        Mark("a Windows minidump", .dump, [0x4d, 0x44, 0x4d, 0x50, 0x93, 0xa7]),
        Mark("a Windows hibernation file", .dump, "HIBR"),
        Mark("a Windows hibernation file", .dump, "hibr"),
        Mark("a Windows hibernation file", .dump, "RSTR"),
        Mark("a Windows hibernation file", .dump, "rstr"),
        Mark("a Windows hibernation file", .dump, "WAKE"),
        Mark("a Windows hibernation file", .dump, "wake"),
        Mark("a hibernation image of Linux", .dump, "S1SUSPEND", at: 4086),
        Mark("a swap area", .swap, "SWAPSPACE2", at: 4086),
        Mark("a core of xm", .dump, [0xed, 0xeb, 0x0f, 0xf0]),
        Mark("a core of xm", .dump, [0xee, 0xeb, 0x0f, 0xf0]),
        Mark("an image of EnCase", .dump, Array("EVF".utf8) + [9, 13, 10, 0xff, 0]),
    ]

    // src/qemu/qemu_saveimage.h of libvirt; migration/savevm.c of QEMU; SSM.cpp of VirtualBox;
    // vmss2core of VMware; XendCheckpoint.py of Xen 4.4.
    private static let savedGuests: [Mark] = [
        Mark("a guest that libvirt saved", .saved, "LibvirtQemudSave"),
        Mark("a guest that libvirt saved in part", .saved, "LibvirtQemudPart"),
        Mark("a saved state of QEMU", .saved, "QEVM"),
        Mark("a saved state of VirtualBox", .saved, "\u{7f}VirtualBox SavedState V"),
        Mark("a suspended state of VMware", .vmware, [0xd0, 0xbe, 0xd2, 0xbe]),
        Mark("a suspended state of VMware", .vmware, [0xd1, 0xba, 0xd1, 0xba]),
        Mark("a suspended state of VMware", .vmware, [0xd2, 0xbe, 0xd2, 0xbe]),
        Mark("a suspended state of VMware", .vmware, [0xd3, 0xbe, 0xd3, 0xbe]),
        Mark("a guest that xend saved", .xend, "LinuxGuestRecord"),
    ]

    // docs/interop/qcow2.rst and block/*.c of QEMU; the specifications of VMDK, VHD and VHDX.
    private static let disks: [Mark] = [
        Mark("a qcow disk image", .disk, [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 1]),
        Mark("a qcow2 disk image", .disk, [0x51, 0x46, 0x49, 0xfb]),
        Mark("a QED disk image", .disk, "QED\0"),
        Mark("a VMDK disk image", .disk, "KDMV"),
        Mark("a VMDK disk image", .disk, "COWD"),
        Mark("a description of a VMDK disk image", .disk, "# Disk DescriptorFile"),
        Mark("a VHDX disk image", .disk, "vhdxfile"),
        Mark("a VHD disk image", .disk, "conectix"),
        Mark("a VDI disk image", .disk, [0x7f, 0x10, 0xda, 0xbe], at: 64),
        Mark("a Parallels disk image", .disk, "WithoutFreeSpace"),
        Mark("a Parallels disk image", .disk, "WithouFreSpacExt"),
    ]

    // RFC 1952; the formats' own documents.
    private static let compressed: [Mark] = [
        Mark("compressed by gzip", .gzip, [0x1f, 0x8b, 8]) { $0.count > 3 && $0[3] & 0xe0 == 0 },
        Mark("compressed by xz", .xz, [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0]),
        Mark("compressed by zstd", .zstd, [0x28, 0xb5, 0x2f, 0xfd]),
        Mark("compressed by bzip2", .bzip2, Array("BZh".utf8)) {
            guard $0.count >= 10, (0x31...0x39).contains($0[3]) else { return false }
            // The first block, or the end of an empty stream.
            return $0[4..<10].elementsEqual([0x31, 0x41, 0x59, 0x26, 0x53, 0x59])
                || $0[4..<10].elementsEqual([0x17, 0x72, 0x45, 0x38, 0x50, 0x90])
        },
        Mark("compressed by lz4", .lz4, [0x04, 0x22, 0x4d, 0x18]),
        Mark("compressed by lz4", .lz4, [0x02, 0x21, 0x4c, 0x18]),
        Mark("compressed by lzop", .lzop, [0x89, 0x4c, 0x5a, 0x4f, 0, 13, 10, 0x1a, 10]),
    ]

    // POSIX.1 pax; APPNOTE.TXT of PKWARE; 7zFormat.txt; the repository format of Varve.
    private static let archives: [Mark] = [
        Mark("a tar archive", .unpack, "ustar", at: 257),
        Mark("a zip archive", .unpack, [0x50, 0x4b, 3, 4]),
        Mark("a 7z archive", .unpack, [0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c]),
        Mark("a pack of Varve", .part, "VARVEPAK"),
        Mark("the head of a Varve repository", .part, "VARVEREP"),
    ]
}
