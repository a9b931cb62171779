import GuestModel

// Shapes: forgeries that no single field makes.

extension Forgery {
    /// Chains, duplicates, lists, records in each other's places, names, and maps, lists and states
    /// that state more than exists.
    static func shapes(of store: ForgedStore) -> [Forgery] {
        records(of: store) + manifests(of: store) + names(of: store) + maps(of: store)
            + lists(of: store)
    }

    private static func shape(
        _ name: String, relinks: Bool = false,
        _ change: @escaping @Sendable (inout ForgedStore) -> Void
    ) -> Forgery {
        Forgery(name: name) { whole in
            var forged = whole
            change(&forged)
            if relinks { forged.relink(from: whole) }
            return forged
        }
    }

    /// A record of each type in the place of one of each other type, and duplicate records.
    private static func records(of store: ForgedStore) -> [Forgery] {
        var result: [Forgery] = []
        for (type, name, _) in FieldTable.types {
            guard let source = store.places(type).last else { continue }
            for (other, place, _) in FieldTable.types where other != type {
                guard let target = store.places(other).last else { continue }
                result.append(
                    shape("a \(name) in the place of the last \(place)") {
                        let transaction = $0[target].transaction
                        $0[target] = $0[source]
                        $0[target].transaction = transaction
                    })
            }
            result.append(
                shape("the last \(name) twice") {
                    let (pack, last) = ($0.packs.count - 1, $0[source])
                    $0.packs[pack].records.append(last)
                })
            result.append(
                shape("without the last \(name)") {
                    $0.packs[source.pack].records.remove(at: source.record)
                })
            result.append(
                shape("without the first \(name), relinked", relinks: true) {
                    guard let first = $0.places(type).first else { return }
                    $0.packs[first.pack].records.remove(at: first.record)
                })
        }
        return result
    }

    private static func manifests(of store: ForgedStore) -> [Forgery] {
        let last = store.places(4)[store.places(4).count - 1]
        let own = store[last].payload
        func add(
            _ name: String, _ count: Int,
            _ change: @escaping @Sendable (Int, inout [UInt8], [UInt8]) -> Void
        ) -> Forgery {
            shape(name) {
                var before = own
                for step in 1...count {
                    var payload = own
                    let number =
                        Little.read(own[...], Manifests.transaction.lowerBound, 8) + UInt64(step)
                    payload.replaceSubrange(Manifests.transaction, with: Little.bytes(number, 8))
                    payload = Manifests.naming(payload, maps: [], states: nil)
                    change(step, &payload, Manifests.id(before))
                    $0.packs[$0.packs.count - 1].records.append(
                        ForgedRecord(type: 4, transaction: number, payload: payload))
                    before = payload
                }
            }
        }
        @Sendable func position(_ payload: inout [UInt8], _ value: UInt32) {
            payload.replaceSubrange(Manifests.position, with: Little.bytes(UInt64(value), 4))
        }
        let base = UInt32(Little.read(own[...], Manifests.position.lowerBound, 4))
        return [
            add("a chain of 600 delta maps", 600) { step, payload, id in
                position(&payload, base + UInt32(step))
                payload.replaceSubrange(Manifests.ancestor, with: id)
            },
            add("a chain of 300 delta maps of one position", 300) { _, payload, id in
                position(&payload, 1)
                payload.replaceSubrange(Manifests.ancestor, with: id)
            },
            add("300 checkpoints that follow each other and have no map", 300) { _, payload, id in
                position(&payload, 0)
                payload.replaceSubrange(Manifests.parent, with: id)
                payload.replaceSubrange(Manifests.ancestor, with: [UInt8](repeating: 0, count: 32))
                for field in Manifests.counts(payload) {
                    payload.replaceSubrange(
                        field..<field + 8, with: [UInt8](repeating: 0, count: 8))
                }
            },
            add("a manifest with the transaction of the one before", 1) { _, payload, _ in
                payload.replaceSubrange(
                    Manifests.transaction, with: own[Manifests.transaction])
            },
            add("a delta map on nothing", 1) { _, payload, _ in
                position(&payload, 1)
                payload.replaceSubrange(Manifests.ancestor, with: [UInt8](repeating: 7, count: 32))
            },
        ]
    }

    /// Invalid names.
    private static func names(of store: ForgedStore) -> [Forgery] {
        let odd: [(String, [UInt8])] = [
            ("escapes", Array("\u{1b}[2J\nforged".utf8)), ("nothing", []), ("a hyphen", [45, 97]),
            ("a zero", [97, 0, 98]), ("a tilde", [97, 126, 49]), ("no UTF-8", [0xff, 0xfe]),
            ("a space", [97, 32, 98]), ("right to left", Array("a\u{202e}b".utf8)),
            ("256 bytes", [UInt8](repeating: 97, count: 256)),
            ("65,535 bytes", [UInt8](repeating: 97, count: 65_535)),
        ]
        return odd.flatMap { what, name in
            [true, false].flatMap { isLineage in
                [0, store.places(4).count - 1].map { index in
                    shape(
                        "manifest \(index), its \(isLineage ? "lineage" : "label") has \(what)",
                        relinks: true
                    ) {
                        let place = $0.places(4)[index]
                        $0[place].payload = Manifests.renamed(
                            $0[place].payload, lineage: isLineage ? name : nil,
                            label: isLineage ? nil : name)
                    }
                }
            }
        }
    }

    /// Lists in manifests, and lists of removed packs.
    private static func lists(of store: ForgedStore) -> [Forgery] {
        let manifests = store.places(4)
        let (first, last) = (manifests[0], manifests[manifests.count - 1])
        func naming(
            _ name: String,
            maps: (@Sendable (ForgedStore) -> [ForgedPart])? = nil,
            states: (@Sendable (ForgedStore) -> [ForgedPart])? = nil
        ) -> Forgery {
            shape(name, relinks: true) {
                $0[last].payload = Manifests.naming(
                    $0[last].payload, maps: maps?($0), states: states?($0))
            }
        }
        @Sendable func many(_ store: ForgedStore, _ kind: Int) -> [ForgedPart] {
            let parts = Manifests.parts(store[last].payload, kind)
            return (0..<4000).flatMap { step in
                parts.map {
                    ForgedPart(first: $0.first + UInt64(step), pack: $0.pack, offset: $0.offset)
                }
            }
        }
        func removed(_ name: String, _ payload: [UInt8]) -> Forgery {
            shape("removed packs: \(name)") {
                $0.packs[$0.packs.count - 1].records.append(
                    ForgedRecord(type: 8, transaction: 0, payload: payload))
            }
        }
        return [
            naming("a state part 4,000 times", states: { many($0, 1) }),
            naming("a map part 4,000 times", maps: { many($0, 0) }),
            naming("the page map of another", maps: { Manifests.parts($0[first].payload, 0) }),
            naming("the state of another", states: { Manifests.parts($0[first].payload, 1) }),
            naming("a state that is a page map", states: { Manifests.parts($0[last].payload, 0) }),
            naming("a page map that is a state", maps: { Manifests.parts($0[last].payload, 1) }),
            naming("no page map", maps: { _ in [] }), naming("no state", states: { _ in [] }),
            naming(
                "10,000 parts that are not there",
                maps: { _ in
                    (0..<10_000).map {
                        ForgedPart(first: UInt64($0), pack: 1, offset: 64 + 8 * $0)
                    }
                }),
            removed("all there can be", [1, 1] + Varint.bytes(1 << 32 - 2)),
            removed("those that are there", [1, 1, 1]),
            removed("none", [0]), removed("pack 0", [1, 0, 1]),
            removed("a range of none", [1, 5, 0]),
            removed("2^63 ranges", Varint.bytes(1 << 63)),
            removed("20,000 ranges", Varint.bytes(20_000) + (0..<20_000).flatMap { _ in [1, 1] }),
        ]
    }
}
