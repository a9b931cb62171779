import LinuxGuest
import Testing
import VarveTestSupport

/// File formats other than raw memory, built from their own documents, not from the table.
@Suite struct ImageContainerTests {
    private static let forms: [(name: String, offset: Int, bytes: [UInt8])] = [
        ("ELF", 0, [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]), ("ELF", 0, [0x7f, 0x45, 0x4c, 0x46, 1]),
        ("kdump", 0, text("KDUMP   ")), ("diskdump", 0, text("DISKDUMP")),
        ("makedumpfile", 0, text("makedumpfile\0\0\0\0")),
        ("LKCD", 0, little(UInt64(0xa819_0173_618f_23ed))),
        ("LiME", 0, little(UInt32(0x4c69_4d45)) + little(UInt32(1))),
        ("AVML", 0, little(UInt32(0x4c4d_5641)) + little(UInt32(2))),
        ("Windows crash dump (64-bit)", 0, text("PAGEDU64")),
        ("Windows crash dump", 0, text("PAGEDUMP")),
        ("minidump", 0, little(UInt32(0x504d_444d)) + little(UInt32(0xa793))),
        ("Windows hibernation", 0, text("HIBR")), ("Windows hibernation", 0, text("hibr")),
        ("Windows hibernation", 0, text("RSTR")), ("Windows hibernation", 0, text("rstr")),
        ("Windows hibernation", 0, text("WAKE")), ("Windows hibernation", 0, text("wake")),
        ("hibernation image of Linux", 4086, text("S1SUSPEND\0")),
        ("swap area", 4086, text("SWAPSPACE2")),
        ("core of xm", 0, little(UInt32(0xf00f_ebed))),
        ("core of xm", 0, little(UInt32(0xf00f_ebee))),
        ("EnCase", 0, [0x45, 0x56, 0x46, 0x09, 0x0d, 0x0a, 0xff, 0x00]),
        ("libvirt saved", 0, text("LibvirtQemudSave")),
        ("libvirt saved in part", 0, text("LibvirtQemudPart")),
        ("QEMU", 0, big(UInt32(0x5145_564d)) + big(UInt32(3))),
        ("VirtualBox", 0, text("\u{7f}VirtualBox SavedState V2.0\n")),
        ("VMware", 0, little(UInt32(0xbed2_bed0))), ("VMware", 0, little(UInt32(0xbad1_bad1))),
        ("VMware", 0, little(UInt32(0xbed2_bed2))), ("VMware", 0, little(UInt32(0xbed3_bed3))),
        ("xend", 0, text("LinuxGuestRecord")),
        ("qcow disk", 0, big(UInt32(0x5146_49fb)) + big(UInt32(1))),
        ("qcow2 disk", 0, big(UInt32(0x5146_49fb)) + big(UInt32(2))),
        ("qcow2 disk", 0, big(UInt32(0x5146_49fb)) + big(UInt32(3))),
        ("QED", 0, text("QED\0")), ("VMDK", 0, little(UInt32(0x564d_444b))),
        ("VMDK", 0, text("COWD")), ("description of a VMDK", 0, text("# Disk DescriptorFile\n")),
        ("VHDX", 0, text("vhdxfile")), ("VHD disk", 0, text("conectix")),
        (
            "VDI", 0,
            text("<<< Oracle VM VirtualBox Disk Image >>>\n") + zeros(24)
                + little(UInt32(0xbeda_107f))
        ),
        ("Parallels", 0, text("WithoutFreeSpace")), ("Parallels", 0, text("WithouFreSpacExt")),
        ("gzip", 0, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]),
        ("gzip", 0, [0x1f, 0x8b, 8, 8, 1, 2, 3, 4, 0, 3]),
        ("xz", 0, [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]),
        ("zstd", 0, little(UInt32(0xfd2f_b528))),
        ("bzip2", 0, text("BZh9") + [0x31, 0x41, 0x59, 0x26, 0x53, 0x59]),
        ("bzip2", 0, text("BZh1") + [0x17, 0x72, 0x45, 0x38, 0x50, 0x90]),
        ("lz4", 0, little(UInt32(0x184d_2204))), ("lz4", 0, little(UInt32(0x184c_2102))),
        ("lzop", 0, [0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a]),
        ("tar", 257, text("ustar\u{0}00")), ("tar", 257, text("ustar  \0")),
        ("zip", 0, little(UInt32(0x0403_4b50))),
        ("7z", 0, [0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c]),
        ("pack of Varve", 0, text("VARVEPAK")), ("head of a Varve", 0, text("VARVEREP")),
    ]

    private static func text(_ text: String) -> [UInt8] { Array(text.utf8) }
    private static func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

    private func detect(_ bytes: [UInt8]) -> ImageContainer? {
        bytes.withUnsafeBytes { ImageContainer(detecting: $0) }
    }

    @Test func eachFormIsToldByName() {
        var random = TestSeed.generator(1460)
        for form in ImageContainerTests.forms {
            // The bytes around the magic number do not matter.
            var bytes = (0..<4096).map { _ in UInt8.random(in: 1...0x1e, using: &random) }
            bytes.replaceSubrange(form.offset..<form.offset + form.bytes.count, with: form.bytes)
            let found = detect(bytes)
            #expect(found?.name.contains(form.name) == true, "\(form.name): \(found?.name ?? "-")")
            #expect(found?.remedy.isEmpty == false)
            // A file may end with its magic number, and a shorter one has none.
            let end = form.offset + form.bytes.count
            #expect(detect(Array(bytes[..<end]))?.name == found?.name, "\(form.name)")
            for count in 0..<min(end, form.offset + 3) {
                #expect(detect(Array(bytes[..<count])) == nil, "\(form.name), \(count) bytes")
            }
        }
        print("told \(ImageContainerTests.forms.count) forms of files")
    }

    @Test func memoryThatBeginsOddlyIsMemory() {
        var boot = ImageContainerTests.zeros(4096)
        boot[510] = 0x55
        boot[511] = 0xaa
        // The real-mode interrupt table of a BIOS: offset, segment.
        let vectors = (0..<256).flatMap { little(UInt16(0xe000 + $0)) + little(UInt16(0xf000)) }
        let pages: [[UInt8]] = [
            [], [0], ImageContainerTests.zeros(4096), [UInt8](repeating: 0xff, count: 4096), boot,
            [0xeb, 0x3c, 0x90] + boot.dropFirst(3), vectors + ImageContainerTests.zeros(3072),
            // Beginnings of magic numbers, and magic numbers without the other required bytes.
            [0x1f, 0x8b, 8, 0xff], [0x1f, 0x8b, 7, 0], Array("BZh9 is no compressed file".utf8),
            Array("KDUMP  x".utf8), Array(" \u{7f}ELF".utf8), Array("Qfi".utf8),
        ]
        for page in pages { #expect(detect(page) == nil, "\(page.prefix(16))") }
        var random = TestSeed.generator(1461)
        for _ in 0..<2000 {
            let page = (0..<512).flatMap { _ in little(random.next()) }
            #expect(detect(page) == nil, "\(page.prefix(16))")
        }
    }
}
