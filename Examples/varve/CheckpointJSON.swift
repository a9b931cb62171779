import Varve

extension Checkpoint {
    /// The stable object of `log` and `show`; keys may be added, but never change.
    var fields: [(String, JSON)] {
        [
            ("id", .string(id.description)),
            ("parent", JSON(parent?.description)),
            ("lineage", .string(lineage.text)),
            ("label", JSON(label?.text)),
            ("time", .string(Format.time(timeNanoseconds))),
            ("root", .string(root.description)),
            ("pagesChanged", .integer(changedPageCount)),
            ("bytesAdded", .integer(addedByteCount)),
            ("pages", .integer(pageCount)),
            ("zeroPages", .integer(zeroPageCount)),
            ("pagesStored", .integer(storedPageCount)),
            ("metadataBytes", .integer(metadataByteCount)),
            ("pauseMicroseconds", .integer(pauseMicroseconds)),
            ("precopyRounds", .integer(precopyRounds)),
            ("comparedAll", .bool(comparedAll)),
            ("baseMap", .bool(hasBaseMap)),
        ]
    }

    private var pauseMicroseconds: Int {
        let (seconds, attoseconds) = pause.components
        return Int(seconds) * 1_000_000 + Int(attoseconds / 1_000_000_000_000)
    }
}
