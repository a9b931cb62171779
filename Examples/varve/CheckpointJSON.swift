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
            ("pauseMicroseconds", .integer(pause.microseconds)),
            ("precopyRounds", .integer(precopyRounds)),
            ("comparedAll", .bool(comparedAll)),
            ("baseMap", .bool(hasBaseMap)),
            ("drainMicroseconds", .integer(drainTime.microseconds)),
            ("cutMicroseconds", .integer(cutTime.microseconds)),
            ("omitsDisks", .bool(omitsDisks)),
            ("volumes", .array(volumes.map { JSON.object($0.fields) })),
        ]
    }
}

extension Volume {
    fileprivate var fields: [(String, JSON)] {
        [
            ("name", .string(name)),
            ("bytes", .integer(Int(byteCount))),
            ("blockBytes", .integer(blockByteCount)),
            ("root", .string(root.description)),
            ("pages", .integer(pageCount)),
            ("zeroPages", .integer(zeroPageCount)),
            ("pagesChanged", .integer(changedPageCount)),
            ("requestsUnderWay", requestsUnderWay.map { .integer($0) } ?? .null),
        ]
    }
}
