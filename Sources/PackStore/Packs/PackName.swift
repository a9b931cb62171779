/// The names of packs: eight hexadecimal digits.
package enum PackName {
    /// The highest pack number: 128 PiB of packs lie below it, and it has a successor.
    package static let numberMax = UInt32(Int32.max)

    /// The path of a pack: `packs/0000002a.pack`.
    package static func path(_ pack: UInt32) -> String {
        "\(StoreDirectory.packs)/\(String(pack, hexadecimalDigits: 8)).pack"
    }

    /// The path at which prune writes a new version of a pack, before it replaces the old one.
    package static func newPath(_ pack: UInt32) -> String { path(pack) + ".new" }

    /// True for a file left by an interrupted prune.
    package static func isStray(_ name: String) -> Bool {
        name.hasSuffix(".new") && number(String(name.dropLast(4))) != nil
    }

    /// True for a file that is not a pack and may be ignored: one left by prune, or one that NFS
    /// keeps for a file that was removed while it was open.
    package static func isPassedOver(_ name: String) -> Bool {
        isStray(name) || name.hasPrefix(".nfs")
    }

    /// The number in a pack's file name, from 1 to `numberMax`; nil for any other name.
    package static func number(_ name: String) -> UInt32? {
        guard name.hasSuffix(".pack"), name.utf8.count == 13 else { return nil }
        let digits = name.prefix(8)
        guard digits.allSatisfy({ $0.isHexDigit && !$0.isUppercase }) else { return nil }
        return UInt32(digits, radix: 16).flatMap { 1...numberMax ~= $0 ? $0 : nil }
    }

    /// The numbers of all packs, ascending.
    package static func list(_ files: any RepositoryFiles) throws(RepositoryError) -> [UInt32] {
        try names(files).compactMap { number($0) }.sorted()
    }

    /// The names in the directory of packs, unordered; if the directory is missing, all packs are
    /// lost.
    package static func names(_ files: any RepositoryFiles) throws(RepositoryError) -> [String] {
        do throws(FileError) {
            do throws(FileError) {
                return try files.list(StoreDirectory.packs)
            } catch {
                guard error.isMissing else { throw error }
                try files.checkPlace(writing: nil)
            }
        } catch {
            throw RepositoryError(error)
        }
        throw RepositoryError(
            Corruption(
                file: StoreDirectory.packs, offset: 0, object: "folder of packs",
                reason: "it is missing, and all packs with it; restore it from a copy"))
    }

    /// The highest number of a pack that is present; 0 if there is none or no directory.
    static func newest(_ files: any RepositoryFiles) throws(FileError) -> UInt32 {
        do throws(FileError) {
            return try files.list(StoreDirectory.packs).compactMap { number($0) }.max() ?? 0
        } catch {
            guard error.isMissing else { throw error }
            return 0
        }
    }
}

extension String {
    /// A number with leading zeros.
    package init(_ number: some BinaryInteger, hexadecimalDigits count: Int) {
        let digits = String(number, radix: 16)
        self.init(repeating: "0", count: Swift.max(0, count - digits.count))
        self += digits
    }
}
