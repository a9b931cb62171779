import GuestModel

extension Forgery {
    /// The fields of the file `head`, and the locations that it names.
    static func heads(of store: ForgedStore) -> [Forgery] {
        guard let newest = store.packs.last else { return [] }
        let end = UInt64(newest.bytes.count)
        let right: [UInt8] =
            Array("VARVEHED".utf8) + store.envelope[8..<32]
            + Little.bytes(end, 4) + Little.bytes(UInt64(newest.number), 4)
            + [UInt8](repeating: 0, count: 20)
        func forgery(_ name: String, _ range: Range<Int>, _ bytes: [UInt8]) -> Forgery {
            Forgery(name: "head, \(name)") { whole in
                var forged = whole
                forged.head = right
                forged.head?.replaceSubrange(range, with: bytes)
                return forged
            }
        }
        var result: [Forgery] = []
        for field in FieldTable.envelope {
            let range = field.offset..<field.offset + field.width
            for value in FieldTable.values(
                field.width, now: Little.read(right[...], field.offset, field.width))
            {
                result.append(
                    forgery(
                        "\(field.name) = \(value)", range, Little.bytes(value, field.width)))
            }
        }
        let packs = ([0, 1, 2, 1 << 20, 1 << 20 + 1, 1 << 31] as [UInt64])
            .map { UInt64(newest.number) + $0 }
        for pack: UInt64 in packs + [0, 1, 1 << 31 - 1, 1 << 32 - 1] {
            for offset: UInt64 in [0, 64, 65, end - 1, end, end + 8, 1 << 32 - 1] {
                result.append(
                    forgery(
                        "it names offset \(offset) of pack \(pack)", 32..<40,
                        Little.bytes(pack << 32 | offset, 8)))
            }
        }
        return result
    }
}
