import ArgumentParser
import SystemPackage
import Varve

struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Reads every byte of a repository and checks it.",
        discussion: """
            Names each damaged place and the checkpoints that cannot be restored. Exit code 3 if \
            anything is damaged. With --json, one object for each damaged place and a last one \
            with the totals.
            """)

    @Argument(help: "The repository.")
    var store: String

    @Flag(help: "Print one JSON object a line.")
    var json = false

    func run() throws {
        try reporting {
            let repository = try Repository.open(at: FilePath(store), .reading)
            let progress = Progress("verified", isJSON: json)
            let report = try repository.verify { progress.update($0, of: $1) }
            progress.finish()
            if json { try printJSON(report) } else { try printText(report, progress.seconds) }
            if !report.isClean {
                throw ToolError(
                    "\(report.corruptions.count) places of \(store) are damaged and "
                        + "\(report.affectedCheckpoints.count) checkpoints cannot be restored "
                        + "whole; restore the named packs from a copy", isCorruption: true)
            }
        }
    }

    private func printText(_ report: VerifyReport, _ seconds: Double) throws {
        for corruption in report.corruptions { try Output.line(corruption.description) }
        for id in report.affectedCheckpoints { try Output.line("affected: checkpoint \(id)") }
        if report.abandonedByteCount > 0 {
            try Output.line(
                "\(report.abandonedByteCount) bytes of an abandoned transaction follow the last "
                    + "checkpoint; the next writer removes them")
        }
        let speed = Format.bytes(Int(Double(report.byteCount) / max(seconds, 0.001)))
        try Output.line(
            "\(report.isClean ? "clean" : "damaged"): \(report.checkpointCount) checkpoints, "
                + "\(report.packCount) packs, \(Format.bytes(report.byteCount)), "
                + "\(report.pageCount) pages in \(Format.decimal(seconds, 2)) s (\(speed)/s)")
    }

    private func printJSON(_ report: VerifyReport) throws {
        for corruption in report.corruptions {
            try Output.line(
                JSON.object([
                    ("file", .string(corruption.file)),
                    ("offset", .integer(Int(corruption.offset))),
                    ("object", .string(corruption.object)),
                    ("reason", .string(corruption.reason)),
                    ("checkpoint", JSON(corruption.checkpoint?.description)),
                    ("frame", corruption.frame.map { .integer(Int($0.rawValue)) } ?? .null),
                ]).text)
        }
        try Output.line(
            JSON.object([
                ("clean", .bool(report.isClean)),
                ("checkpoints", .integer(report.checkpointCount)),
                ("packs", .integer(report.packCount)),
                ("bytes", .integer(report.byteCount)),
                ("pages", .integer(report.pageCount)),
                ("abandonedBytes", .integer(report.abandonedByteCount)),
                ("corruptions", .integer(report.corruptions.count)),
                (
                    "affectedCheckpoints",
                    .array(report.affectedCheckpoints.map { .string($0.description) })
                ),
            ]).text)
    }
}
