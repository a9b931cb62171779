import GuestModel

// Page maps that state more than exists.

extension Forgery {
    private static func run(
        _ gap: UInt64, _ count: UInt64, _ content: UInt8, ordinal: Int64? = nil
    ) -> [UInt8] {
        Varint.bytes(gap) + Varint.bytes(count) + [content] + (ordinal.map(Varint.zigzag) ?? [])
    }

    /// A part's payload: runs as they are, and digests.
    private static func part(_ runs: [UInt8], digests: Int = 0, unpacked: UInt64? = nil) -> [UInt8]
    {
        Little.bytes(UInt64(digests), 4) + Little.bytes(UInt64(runs.count), 4)
            + Little.bytes(unpacked ?? UInt64(runs.count), 4) + Little.bytes(0, 4) + runs
            + [UInt8](repeating: 5, count: 32 * digests)
    }

    static func maps(of store: ForgedStore) -> [Forgery] {
        let bomb: [UInt8] = (0..<60_000).flatMap { _ in [UInt8(1), 1, 1] }
        let shapes: [(String, [UInt8])] = [
            ("2^52 frames absent", part(run(0, 1 << 52 - 1, 0))),
            ("2^31 frames zero", part(run(0, 1 << 31, 1))),
            ("131,072 frames zero", part(run(0, 131_072, 1))),
            ("131,073 frames zero", part(run(0, 131_072, 1) + run(0, 1, 1))),
            ("the last frame of all", part(run(1 << 32 - 1, 1, 1))),
            ("the last frame of all absent", part(run(1 << 32 - 1, 1, 0))),
            ("a frame beyond 2^32", part(run(1 << 32, 1, 1))),
            ("a frame beyond 2^52", part(run(1 << 52, 1, 1))),
            ("gaps that overflow", part(run(1, 1, 1) + run(.max - 1, 1, 1))),
            ("a run of no frames", part(run(3, 0, 1))),
            ("a run of 2^64-1 frames", part(run(0, .max, 1))),
            ("an unknown content", part(run(0, 1, 4))),
            ("digests that are not there", part(run(0, 9, 3))),
            ("pages that no frame holds", part(run(0, 9, 2, ordinal: 1 << 31), digests: 9)),
            ("the last ordinal", part(run(0, 9, 2, ordinal: 1 << 32 - 1), digests: 9)),
            ("an ordinal below 0", part(run(0, 9, 2, ordinal: -1), digests: 9)),
            ("an ordinal of 2^63", part(run(0, 9, 2, ordinal: .min), digests: 9)),
            ("pages that nobody has", part(run(0, 9, 3), digests: 9)),
            ("no runs", part([])), ("60,000 runs", part(bomb)),
            ("runs of 4 GiB unpacked", part([1, 2, 3], unpacked: 1 << 32 - 1)),
            ("runs of 2 MiB unpacked", part([40, 181, 47, 253, 1, 2, 3], unpacked: 2 << 20)),
            ("a number in its long form", part([0x80, 0, 1, 1])),
            ("a number without an end", part([UInt8](repeating: 0x80, count: 12))),
        ]
        return shapes.flatMap { name, payload in
            [0, store.places(2).count - 1].flatMap { index in
                [false, true].map { states in
                    Forgery(
                        name: "map part \(index): \(name)\(states ? ", and it is stated" : "")"
                    ) { whole in
                        var forged = whole
                        let place = whole.places(2)[index]
                        forged[place].payload = payload
                        if states { state(&forged, payload, forged[place].transaction) }
                        forged.relink(from: whole)
                        return forged
                    }
                }
            }
        } + [wide(200)]
    }

    /// Makes the manifest of a transaction state the largest possible guest.
    ///
    /// - Parameter part: its page map, of one part.
    private static func state(
        _ store: inout ForgedStore, _ part: [UInt8], _ transaction: UInt64
    ) {
        for place in store.places(4) where store[place].transaction == transaction {
            for (field, value) in zip(
                Manifests.counts(store[place].payload), [1 << 32, 1 << 30 as UInt64, 0])
            {
                store[place].payload.replaceSubrange(
                    field..<field + 8, with: Little.bytes(value, 8))
            }
            store[place].payload = Manifests.beginning(
                store[place].payload, at: Varint.first(part.dropFirst(16)))
        }
    }

    /// A guest of zero pages in many small parts.
    private static func wide(_ count: Int) -> Forgery {
        Forgery(name: "\(count) parts of 131,072 zero frames") { whole in
            var forged = whole
            let pack = whole.packs.count - 1
            guard let last = whole.places(4).last else { return whole }
            let number = whole[last].transaction + 1
            var offset = UInt32(whole.packs[pack].bytes.count)
            if whole.packs[pack].isSealed { return whole }
            var parts: [ForgedPart] = []
            for part in 0..<count {
                let record = ForgedRecord(
                    type: 2, transaction: number,
                    payload: Forgery.part(run(UInt64(part) * 131_072, 131_072, 1)))
                parts.append(
                    ForgedPart(
                        first: UInt64(part) * 131_072, pack: whole.packs[pack].number,
                        offset: offset))
                offset += UInt32(record.byteCount)
                forged.packs[pack].records.append(record)
            }
            var payload = Manifests.naming(whole[last].payload, maps: parts, states: [])
            payload.replaceSubrange(Manifests.position, with: [0, 0, 0, 0])
            payload.replaceSubrange(Manifests.transaction, with: Little.bytes(number, 8))
            payload.replaceSubrange(
                Manifests.ancestor, with: [UInt8](repeating: 0, count: 32))
            for field in Manifests.counts(payload).prefix(3) {
                payload.replaceSubrange(
                    field..<field + 8, with: Little.bytes(UInt64(count) * 131_072, 8))
            }
            forged.packs[pack].records.append(
                ForgedRecord(type: 4, transaction: number, payload: payload))
            return forged
        }
    }
}
