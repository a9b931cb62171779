/// The names of packs: eight hexadecimal digits.
package enum PackName {
    /// The folder that packs lie in.
    package static let directory = "packs"

    /// The highest number of a pack: 128 PiB of packs lie below it, and it has a successor.
    package static let numberMax = UInt32(Int32.max)

    /// The path of a pack: `packs/0000002a.pack`.
    package static func path(_ pack: UInt32) -> String {
        let digits = String(pack, radix: 16)
        return "\(directory)/\(String(repeating: "0", count: 8 - digits.count))\(digits).pack"
    }

    /// The path at which prune writes a pack anew, before it takes the place of the old one.
    package static func newPath(_ pack: UInt32) -> String { path(pack) + ".new" }

    /// True for what a prune that was cut short has left.
    package static func isStray(_ name: String) -> Bool {
        name.hasSuffix(".new") && number(String(name.dropLast(4))) != nil
    }

    /// The number in a file's name, from 1 to `numberMax`; nil if it is not a pack's.
    package static func number(_ name: String) -> UInt32? {
        guard name.hasSuffix(".pack"), name.utf8.count == 13 else { return nil }
        let digits = name.prefix(8)
        guard digits.allSatisfy({ $0.isHexDigit && !$0.isUppercase }) else { return nil }
        return UInt32(digits, radix: 16).flatMap { 1...numberMax ~= $0 ? $0 : nil }
    }

    /// The numbers of all packs, ascending.
    package static func list(_ files: any RepositoryFiles) throws(RepositoryError) -> [UInt32] {
        do {
            return try files.list(directory).compactMap { number($0) }.sorted()
        } catch {
            throw RepositoryError(error)
        }
    }
}
