import Foundation

extension ForgedStore {
    /// Writes inputs for Tests/StoreFuzz: a record of each type, and small packs.
    package func writeCorpus(_ folder: String) throws {
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: true)
        func write(_ bytes: [UInt8], _ name: String) throws {
            try Data(bytes).write(to: URL(fileURLWithPath: folder).appendingPathComponent(name))
        }
        for (type, name, _) in FieldTable.types {
            let payloads = places(type).map { self[$0].payload }.sorted { $0.count < $1.count }
            guard let smallest = payloads.first else { continue }
            try write([type] + smallest, name.replacing(" ", with: "-"))
        }
        try write([6] + packs[0].rightIndex, "pack-index")
        let small = packs.flatMap(\.records).filter { $0.payload.count < 2000 }.prefix(12)
        for kind: UInt8 in 10...12 {
            let records = small.flatMap { record in
                [record.type, UInt8(truncatingIfNeeded: record.transaction)]
                    + Little.bytes(UInt64(record.payload.count), 2) + record.payload
            }
            try write([kind] + records + [6, 0, 1, 0, 0], "pack-\(kind)")
        }
    }
}
