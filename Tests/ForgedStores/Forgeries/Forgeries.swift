import GuestModel

// The forgeries. Each is created on request, from a whole store, and has a name that describes it.

/// One forged store.
package struct Forgery: Sendable {
    package let name: String
    let make: @Sendable (ForgedStore) -> ForgedStore

    /// The store.
    package func store(from whole: ForgedStore) -> ForgedStore { make(whole) }
}

extension Forgery {
    /// All of them, in the order of their numbers.
    package static func all(of store: ForgedStore) -> [Forgery] {
        fields(of: store) + files(of: store) + shapes(of: store) + heads(of: store)
    }

    /// Every field, at its limits, of records of each type (the first, a middle one, and the last);
    /// once without other changes, and once with all references to the record updated.
    static func fields(of store: ForgedStore) -> [Forgery] {
        var result: [Forgery] = []
        for (type, name, fields) in FieldTable.types {
            let places = store.places(type)
            let chosen = Set([0, places.count / 2, places.count - 1].filter { $0 >= 0 })
            for index in chosen.sorted() where index < places.count {
                let place = places[index]
                let label = "\(name) \(index)"
                result += headers(place, label, store)
                for field in fields(store[place].payload) {
                    result += values(of: field, in: place, label, store)
                }
            }
        }
        return result
    }

    private static func values(
        of field: ForgedField, in place: RecordPlace, _ label: String, _ store: ForgedStore
    ) -> [Forgery] {
        let now = Little.read(store[place].payload[...], field.offset, field.width)
        return FieldTable.values(field.width, now: now).flatMap { value in
            [false, true].map { relinks in
                Forgery(
                    name: "\(label), \(field.name) = \(value)\(relinks ? ", relinked" : "")"
                ) { whole in
                    var forged = whole
                    forged[place].payload.replaceSubrange(
                        field.offset..<field.offset + field.width,
                        with: Little.bytes(value, field.width))
                    if field.name == "transaction" { forged[place].transaction = value }
                    if relinks { forged.relink(from: whole) }
                    return forged
                }
            }
        }
    }

    private static func headers(
        _ place: RecordPlace, _ label: String, _ store: ForgedStore
    ) -> [Forgery] {
        func change(
            _ name: String, _ width: Int, _ now: UInt64,
            _ set: @escaping @Sendable (inout ForgedRecord, UInt64) -> Void
        ) -> [Forgery] {
            FieldTable.values(width, now: now).map { value in
                Forgery(name: "\(label), its \(name) = \(value)") { whole in
                    var forged = whole
                    set(&forged[place], value)
                    return forged
                }
            }
        }
        let record = store[place]
        return change("type", 1, UInt64(record.type)) { $0.type = UInt8($1) }
            + change("reserved byte", 1, 0) { $0.reserved[1] = UInt8($1) }
            + change("length", 4, UInt64(record.payload.count)) { $0.statedCount = UInt32($1) }
            + change("confirmed", 4, UInt64(record.confirmed)) { $0.confirmed = UInt32($1) }
            + change("transaction", 8, record.transaction) { $0.transaction = $1 }
            + change("address", 4, UInt64(record.address)) { $0.address = UInt32($1) }
    }

    /// The fields of envelopes, of footers, and the numbers of pack indexes.
    static func files(of store: ForgedStore) -> [Forgery] {
        var result: [Forgery] = []
        func add(_ name: String, _ change: @escaping @Sendable (inout ForgedStore) -> Void) {
            result.append(
                Forgery(name: name) { whole in
                    var forged = whole
                    change(&forged)
                    return forged
                })
        }
        for field in FieldTable.envelope {
            let range = field.offset..<field.offset + field.width
            let now = Little.read(store.envelope[...], field.offset, field.width)
            for value in FieldTable.values(field.width, now: now) {
                let bytes = Little.bytes(value, field.width)
                add("repository, \(field.name) = \(value)") {
                    $0.envelope.replaceSubrange(range, with: bytes)
                }
                for pack in [0, store.packs.count - 1] {
                    add("envelope \(pack), \(field.name) = \(value)") {
                        $0.packs[pack].envelope.replaceSubrange(range, with: bytes)
                    }
                }
            }
        }
        for (position, pack) in store.packs.enumerated() where pack.isSealed {
            let foot = pack.rightFooter(UInt64(pack.bytes.count - 32 - pack.rightIndex.count))
            for field in FieldTable.footer {
                let now = Little.read(foot[...], field.offset, field.width)
                for value in FieldTable.values(field.width, now: now) {
                    add("footer \(position), \(field.name) = \(value)") {
                        var forged = foot
                        forged.replaceSubrange(
                            field.offset..<field.offset + field.width,
                            with: Little.bytes(value, field.width))
                        $0.packs[position].footer = forged
                    }
                }
            }
            let index = pack.rightIndex
            for offset in stride(from: 0, to: index.count, by: max(1, index.count / 40)) {
                for value: UInt8 in [0, 1, 127, 128, 255] {
                    add("index \(position), byte \(offset) = \(value)") {
                        $0.packs[position].index = index
                        $0.packs[position].index?[offset] = value
                    }
                }
            }
        }
        for number: UInt32 in [0, 2, 1000, 1 << 31 - 2, 1 << 31 - 1, 1 << 31, .max - 1, .max] {
            add("newest pack is number \(number)") {
                let last = $0.packs.count - 1
                $0.packs[last].number = number
                $0.packs[last].envelope.replaceSubrange(
                    32..<40, with: Little.bytes(UInt64(number), 8))
            }
        }
        return result
    }
}
