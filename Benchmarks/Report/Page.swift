import Foundation
import Measuring

/// The report page.
struct Page {
    let results: Results
    let plots: [Plot]
    /// SHORTFALLS.md: explanations of missed targets, written by a person.
    let shortfalls: String

    private static let suites = [
        ("copy", "Copying"), ("zero", "Zero test"), ("digest", "Digest"), ("encode", "Encode"),
        ("decode", "Decode"), ("index", "Index"), ("size", "The pause and the guest's size"),
        ("share", "Captures and the share of dirty pages"), ("capture", "Until durable"),
        ("frequency", "Frequency"), ("revert", "Revert"), ("metadata", "Metadata"),
        ("chain", "Restore and the length of the chain"), ("verify", "Verify"),
        ("prune", "Prune"), ("import", "Images, beside other programs"),
        ("export", "Images back, beside other programs"), ("stream", "Streams of Xen"),
    ]

    var text: String {
        var parts = [head, bars]
        if !shortfalls.isEmpty { parts.append("## What falls short\n\n\(shortfalls)") }
        parts.append(drawings)
        for (name, title) in Page.suites {
            let figures = results.suite(name)
            if !figures.isEmpty { parts.append(section(title, figures)) }
        }
        parts.append(contentsOf: [memory, soak, counts, xen].filter { !$0.isEmpty })
        return parts.map { $0.trimmingCharacters(in: .newlines) }.joined(separator: "\n\n") + "\n"
    }

    // MARK: - Head

    private var head: String {
        let machine = results.machine
        return """
            # Results

            \(machine.date), commit \(machine.commit). \(machine.coreCount) cores of \
            \(machine.processor), \(Format.bytes(machine.memoryByteCount)) of memory, \
            \(machine.kernel), \(machine.system); \(machine.swift). \
            Programs installed to measure beside: \(machine.programs.joined(separator: ", ")). \
            Load when the report was made: \(machine.load).\
            \(results.isQuick ? " **A quick run: small sizes, few rounds.**" : "")

            Pages: \(machine.pages). The suites are those of `Scripts/benchmark`; `results.json` \
            has all numbers. \
            Series of one figure are timed in turn in one process, round after round, and a ratio \
            is the middle of the rounds' ratios: compare ratios, not seconds. Part, limit and peer \
            say what a series is: part is Varve's own, limit what the hardware or the library \
            below allows, peer what one would take instead. On a machine that does other work the \
            least of the rounds is nearest to what it can do.
            """
    }

    private var bars: String {
        var lines = [
            "## Figures to reach", "",
            "| what | bar | measured | limit, same run | peer, same run | reached |",
            "|---|---|---|---|---|---|",
        ]
        for bar in Bar.all(of: results) {
            guard let verdict = bar.verdict else {
                lines.append("| \(bar.what) | \(bar.bar) | not measured | | | no |")
                continue
            }
            lines.append(
                "| \(bar.what) | \(bar.bar) | \(verdict.measured) | \(verdict.limit) | "
                    + "\(verdict.peer) | \(verdict.isReached ? "yes" : "**no**") |")
        }
        return lines.joined(separator: "\n")
    }

    private var drawings: String {
        plots.isEmpty
            ? ""
            : "## Plots\n\n"
                + plots.map { "![\($0.title)](plots/\($0.name).svg)" }.joined(separator: "\n\n")
    }

    // MARK: - Suites

    private func section(_ title: String, _ figures: [Figure]) -> String {
        var lines = [
            "## \(title)", "",
            "| series | | least | p50 | p99 | most | rate | Varve over it, p50 (least to most) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for figure in figures {
            lines.append("| **\(figure.title)** | | | | | | | |")
            for series in figure.series { lines.append(row(series, figure)) }
            for note in figure.notes {
                lines.append(
                    "| \(note.name) | | | \(Format.value(note.value, note.unit)) | | | | |")
            }
        }
        return lines.joined(separator: "\n")
    }

    private func row(_ series: Series, _ figure: Figure) -> String {
        let ratio = figure.ratio(to: series.name)?.value
        let cells = [
            series.name, series.role == .subject ? "Varve" : series.role.rawValue,
            Format.seconds(series.seconds.least), Format.seconds(series.seconds.p50),
            Format.seconds(series.seconds.p99),
            Format.seconds(series.seconds.most), series.rate.map(Format.rate) ?? "",
            ratio.map {
                $0.count == 1
                    ? Format.times($0.p50)
                    : "\(Format.times($0.p50)) (\(Format.number($0.least)) to "
                        + "\(Format.number($0.most)))"
            } ?? "",
        ]
        return "| " + cells.joined(separator: " | ") + " |"
    }

    // MARK: - Memory, counts, long runs

    /// Peaks of processor time and memory, from every suite.
    private var memory: String {
        var lines: [String] = []
        for figure in results.figures {
            for series in figure.series {
                guard let peak = series.peakByteCount, let cpu = series.cpuSeconds else { continue }
                lines.append(
                    "| \(figure.title) | \(series.name) | \(Format.seconds(series.seconds.p50)) | "
                        + "\(Format.seconds(cpu / Double(series.seconds.count))) | "
                        + "\(Format.bytes(Double(peak))) |")
            }
            if let beside = figure.note("memory beside the guest") {
                lines.append(
                    "| \(figure.title) | Varve, beside the guest in the same process | | | "
                        + "\(Format.bytes(beside)) |")
            }
        }
        guard !lines.isEmpty else { return "" }
        return
            ([
                "## Processor time and peak memory", "",
                "| what | who | wall, p50 | processor, a round | peak memory |",
                "|---|---|---|---|---|",
            ] + lines).joined(separator: "\n")
    }

    private var soak: String {
        guard let last = results.soak.last, let first = results.soak.first else { return "" }
        let most = results.soak.map(\.byteCount).max() ?? 0
        return """
            ## A store under retention

            \(Format.number(last.checkpoints)) checkpoints by `Scripts/soak store`, forgotten and \
            pruned beside: \(Format.bytes(first.byteCount)) after \
            \(Format.number(first.checkpoints)), \(Format.bytes(most)) at most, \
            \(Format.bytes(last.byteCount)) at the end with \(Format.number(last.kept)) kept. The \
            plot is above.
            """
    }

    private var counts: String {
        guard !results.counts.isEmpty else { return "" }
        let lines = results.counts.map {
            "| \($0.name) | \(Format.number($0.value)) | \(Format.number($0.budget)) |"
        }
        return
            ([
                "## Counts", "",
                "`Scripts/benchmark --counts` fails if one is over its budget. No time is gated.",
                "", "| what | counted | budget |", "|---|---|---|",
            ] + lines).joined(separator: "\n")
    }

    private var xen: String {
        guard !results.xen.isEmpty else { return "" }
        return "## On an emulated Xen\n\nLines of `Scripts/xen-test`, as it printed them.\n\n"
            + results.xen.map { "    " + $0 }.joined(separator: "\n")
    }
}
