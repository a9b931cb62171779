import GuestModel

/// Names of the disks of one group.
enum DiskNames {
    /// Throws unless all names are different and have 1 to 255 bytes.
    static func check(_ names: [String]) throws(GuestError) {
        var seen: Set<String> = []
        for name in names {
            guard 1...255 ~= name.utf8.count, !name.utf8.contains(0) else {
                throw GuestError(
                    code: .invalidOption,
                    message: "a disk's name has 1 to 255 bytes, none of them 0, and not "
                        + "\(name.utf8.count): '\(PrintableText.escape(name))'")
            }
            guard seen.insert(name).inserted else {
                throw GuestError(
                    code: .invalidOption,
                    message: "two disks are named \(PrintableText.escape(name)); give each a name "
                        + "of its own")
            }
        }
    }
}
