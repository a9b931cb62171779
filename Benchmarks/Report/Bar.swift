import Foundation
import Measuring

/// A target figure, and the result of a run.
struct Bar {
    /// The measured value, in words, and whether it reaches the target.
    struct Verdict {
        let measured: String
        /// The limit in the same run; empty if the bar has none.
        var limit = ""
        /// The peer in the same run; empty if the bar has none.
        var peer = ""
        let isReached: Bool
    }

    let what: String
    let bar: String
    /// nil if the run has no such figure.
    let verdict: Verdict?

    init(_ what: String, _ bar: String, _ verdict: Verdict?) {
        self.what = what
        self.bar = bar
        self.verdict = verdict
    }

    /// All of them.
    static func all(of results: Results) -> [Bar] {
        pauses(results) + [
            frequency(results, "frequency.100"),
            frequency(results, "frequency.level"), digest(results), encode(results, "encode.cores"),
        ] + imports(results) + [
            restore(results, "sixteenth"), restore(results, "everywhere"), revert(results),
            metadata(results, "a plain delta", 48), metadata(results, "on average", 150),
            memory(results), verify(results), counts(results),
        ]
    }

    // MARK: - Captures

    private static func pauses(_ results: Results) -> [Bar] {
        let sizes = results.suite("size")
        let limit = "take the log and memcpy the pages"
        let ends = [sizes.first, sizes.count > 1 ? sizes.last : nil].compactMap { $0 }
        return ends.map { figure in
            let verdict = figure.ratio(to: limit).flatMap { ratio in
                figure.subject.flatMap { subject in
                    figure.series(limit).map { other in
                        Verdict(
                            measured: "\(Format.times(ratio.value.p50)): p50 "
                                + "\(Format.seconds(subject.seconds.p50)), p99 "
                                + "\(Format.seconds(subject.seconds.p99)), max "
                                + "\(Format.seconds(subject.seconds.most)); the least over the "
                                + "limit's least "
                                + Format.times(subject.seconds.least / other.seconds.least),
                            limit: "\(limit): \(Format.seconds(other.seconds.p50))",
                            isReached: ratio.value.p50 <= 1.2)
                    }
                }
            }
            return Bar(figure.title, "<= 1.2 x copying the pages and reading the log", verdict)
        }
    }

    private static func frequency(_ results: Results, _ id: String) -> Bar {
        let figure = results.figure(id)
        let verdict = figure.flatMap { figure -> Verdict? in
            guard let rate = figure.note("durable checkpoints a second"),
                let late = figure.note("began over 10 ms late"),
                let count = figure.note("checkpoints"), let pause = figure.subject?.seconds,
                let durable = figure.series("until durable")?.seconds
            else { return nil }
            let disk = figure.series("write and fdatasync of what one stored")?.seconds
            return Verdict(
                measured: "\(Format.number(rate)) a second, \(Format.number(late)) of "
                    + "\(Format.number(count)) over 10 ms late; pause p50 "
                    + "\(Format.seconds(pause.p50)), p99 \(Format.seconds(pause.p99)), max "
                    + "\(Format.seconds(pause.most)); durable after p50 "
                    + "\(Format.seconds(durable.p50)), p99 \(Format.seconds(durable.p99))",
                limit: disk.map { "the disk alone: \(Format.seconds($0.p50)) each" } ?? "",
                isReached: rate >= 99 && late <= count / 100)
        }
        return Bar(
            figure?.title ?? id,
            "100 durable checkpoints a second at <= 1,000 dirty pages", verdict)
    }

    private static func revert(_ results: Results) -> Bar {
        let limit = "memcpy of the pages to their places"
        let figure = results.figure("revert.1")
        let verdict = figure.flatMap { figure -> Verdict? in
            guard let ratio = figure.ratio(to: limit)?.value, let subject = figure.subject,
                let whole = figure.series("whole, with reading and checking"),
                let other = figure.series(limit), let written = figure.note("pages written")
            else { return nil }
            return Verdict(
                measured: "\(Format.times(ratio.p50)): downtime "
                    + "\(Format.seconds(subject.seconds.p50)), whole "
                    + "\(Format.seconds(whole.seconds.p50)); "
                    + "\(Format.number(written)) pages written; the least over the limit's least "
                    + Format.times(subject.seconds.least / other.seconds.least),
                limit: "\(limit): \(Format.seconds(other.seconds.p50))",
                isReached: ratio.p50 <= 2)
        }
        return Bar(
            figure?.title ?? "revert",
            "writes only pages that differ; downtime <= 2 x copying them", verdict)
    }

    private static func metadata(_ results: Results, _ note: String, _ most: Double) -> Bar {
        let figure = results.figure("metadata.random")
        let verdict = figure?.note(note).map {
            Verdict(
                measured: "\(Format.number($0)) bytes a dirty page", isReached: $0 <= most)
        }
        return Bar(
            "metadata, \(note): \(figure?.title ?? "")",
            "<= \(Format.number(most)) bytes a dirty page", verdict)
    }

    private static func memory(_ results: Results) -> Bar {
        let pool = Double(256 << 20)
        let shares = results.figures.compactMap { figure -> (share: Double, text: String)? in
            guard let beside = figure.note("memory beside the guest"),
                let guest = figure.note("guest")
            else { return nil }
            return (
                beside / (guest / 100 + pool),
                "\(Format.bytes(beside)) beside \(Format.bytes(guest)) (\(figure.id))"
            )
        }
        let worst = shares.max { $0.share < $1.share }
        return Bar(
            "memory of the capturing process, all captures of this run",
            "<= 1 % of the guest and the staging pool (256 MiB)",
            worst.map {
                Verdict(
                    measured: "at worst \($0.text): \(Format.times($0.share)) of it",
                    isReached: $0.share <= 1)
            })
    }

    // MARK: - Stages

    private static func digest(_ results: Results) -> Bar {
        let figure = results.suite("digest").max {
            ($0.subject?.rate ?? 0) < ($1.subject?.rate ?? 0)
        }
        let verdict = figure.flatMap { figure -> Verdict? in
            guard let ratio = figure.ratios.first(where: { $0.to.hasPrefix("b3sum") }),
                let rate = figure.subject?.rate, let limit = figure.series(ratio.to)?.rate
            else { return nil }
            let peer = figure.series.first { $0.role == .peer }
            return Verdict(
                measured: "\(Format.times(1 / ratio.value.p50)): \(Format.rate(rate))"
                    + best(figure, ratio.to),
                limit: "\(ratio.to): \(Format.rate(limit))",
                peer: peer.flatMap { peer in
                    peer.rate.map { "\(peer.name): \(Format.rate($0))" }
                } ?? "",
                isReached: 1 / ratio.value.p50 >= 1.1)
        }
        return Bar(
            figure?.title ?? "digest", ">= 1.1 x b3sum on one long file; equal results", verdict)
    }

    /// The quickest round compared with the limit's quickest.
    private static func best(_ figure: Figure, _ other: String) -> String {
        guard let mine = figure.subject?.seconds.least,
            let limit = figure.series(other)?.seconds.least
        else { return "" }
        return "; at best \(Format.times(limit / mine)) of the limit's best"
    }

    private static func encode(_ results: Results, _ id: String) -> Bar {
        let figure = results.figure(id)
        let verdict = figure.flatMap { figure -> Verdict? in
            guard let ratio = figure.ratios.first(where: { $0.to.hasPrefix("zstd -b") }),
                let rate = figure.subject?.rate, let limit = figure.series(ratio.to)?.rate
            else { return nil }
            return Verdict(
                measured: "\(Format.number(100 / ratio.value.p50)) %: \(Format.rate(rate))"
                    + best(figure, ratio.to),
                limit: "\(ratio.to): \(Format.rate(limit))", isReached: ratio.value.p50 <= 1 / 0.85)
        }
        return Bar(figure?.title ?? "encode", ">= 85 % of zstd -b times cores", verdict)
    }

    private static func verify(_ results: Results) -> Bar {
        let figure = results.figure("verify.full")
        let limit = "zstd -t, then b3sum --num-threads 1 of the pages"
        let verdict = figure.flatMap { figure -> Verdict? in
            guard let ratio = figure.ratio(to: limit)?.value, let rate = figure.subject?.rate,
                let other = figure.series(limit)?.rate,
                let test = figure.ratios.first(where: { $0.to.hasPrefix("zstd -t of") })
            else { return nil }
            return Verdict(
                measured: "\(Format.times(ratio.p50)): \(Format.rate(rate)); "
                    + "\(Format.times(test.value.p50)) of zstd -t alone",
                limit: "\(limit): \(Format.rate(other))", isReached: ratio.p50 <= 1)
        }
        return Bar(figure?.title ?? "verify", "at digest speed over decompression", verdict)
    }

    private static func counts(_ results: Results) -> Bar {
        let over = results.counts.filter { $0.value > $0.budget }
        return Bar(
            "allocations, calls of the disk, bytes and maps (varve-counts)",
            "each within its budget",
            results.counts.isEmpty
                ? nil
                : Verdict(
                    measured: over.isEmpty
                        ? "all \(results.counts.count)"
                        : "over: \(over.map(\.name).joined(separator: "; "))",
                    isReached: over.isEmpty))
    }

    // MARK: - Images

    private static func imports(_ results: Results) -> [Bar] {
        [
            image(results, "import.first", "import of a raw memory image", "restic", 8),
            image(results, "import.first", "import of a raw memory image", "borg", 6),
            bytes(results),
            image(
                results, "import.next", "next image of the chain, every page compared", "restic",
                15),
        ]
    }

    /// How many times faster than the quickest peer with a name Varve is.
    private static func image(
        _ results: Results, _ id: String, _ what: String, _ peer: String, _ least: Double
    ) -> Bar {
        let figure = results.figure(id)
        let verdict = figure.flatMap { figure -> Verdict? in
            let peers = figure.ratios.filter { $0.to.hasPrefix(peer) }
            guard let ratio = peers.max(by: { $0.value.p50 < $1.value.p50 }),
                let other = figure.series(ratio.to), let subject = figure.subject
            else { return nil }
            let disk = figure.series("dd of the image with fdatasync")
            return Verdict(
                measured: "\(Format.times(1 / ratio.value.p50)): "
                    + Format.seconds(subject.seconds.p50) + processor(subject, other),
                limit: disk.map { "\($0.name): \(Format.seconds($0.seconds.p50))" } ?? "",
                peer: "\(other.name): \(Format.seconds(other.seconds.p50))",
                isReached: 1 / ratio.value.p50 >= least)
        }
        return Bar(what, ">= \(Format.number(least)) x \(peer)", verdict)
    }

    /// Processor time compared with a peer's: a busy machine changes it less than wall time.
    private static func processor(_ subject: Series, _ peer: Series) -> String {
        guard let mine = subject.cpuSeconds, let other = peer.cpuSeconds, mine > 0 else {
            return ""
        }
        let each = Format.seconds(mine / Double(subject.seconds.count))
        return "; processor time \(each), \(Format.times(other / mine)) less"
    }

    private static func bytes(_ results: Results) -> Bar {
        let figure = results.figure("import.next")
        let notes = figure?.notes.filter { $0.name.contains(": bytes of ") } ?? []
        func value(_ name: String) -> Double? {
            notes.first { $0.name.hasPrefix(name + ":") }?.value
        }
        var verdict: Verdict?
        if let mine = value("varve"), let borg = value("borg, fixed 4 KiB, zstd 1") {
            verdict = Verdict(
                measured: Format.bytes(mine),
                limit: figure?.note("bytes of the images").map {
                    "the images: \(Format.bytes($0))"
                } ?? "",
                peer: notes.filter { !$0.name.hasPrefix("varve") }.map {
                    "\($0.name.prefix { $0 != ":" }) \(Format.bytes($0.value))"
                }.joined(separator: "; "), isReached: mine <= borg)
        }
        return Bar(
            "bytes of the chain, index included", "<= borg with fixed 4 KiB chunks and zstd 1",
            verdict)
    }

    private static func restore(_ results: Results, _ writes: String) -> Bar {
        let figure = results.figure("chain.\(writes)")
        let verdict = figure.flatMap { figure -> Verdict? in
            guard let ratio = figure.ratio(to: "checkpoint 1")?.value,
                let first = figure.series("checkpoint 1"), let last = figure.subject
            else { return nil }
            let copy = figure.series("memcpy of the whole memory")
            return Verdict(
                measured: "\(Format.times(ratio.p50)): \(first.name) "
                    + "\(Format.seconds(first.seconds.p50)), \(last.name) "
                    + Format.seconds(last.seconds.p50),
                limit: copy.map { "\($0.name): \(Format.seconds($0.seconds.p50))" } ?? "",
                isReached: abs(ratio.p50 - 1) <= 0.05)
        }
        return Bar(figure?.title ?? "restore", "first and last within 5 % of each other", verdict)
    }
}
