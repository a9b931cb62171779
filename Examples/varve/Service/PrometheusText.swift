import Glibc

/// Prometheus' text format, version 0.0.4.
enum PrometheusText {
    /// A metric with all of its series.
    static func family(
        _ name: String, help: String?, _ series: [PrometheusMetrics.Series]
    ) -> String {
        let name = PrometheusText.name(name)
        var lines: [String] = []
        if let help { lines.append("# HELP \(name) \(escaped(help, ["\\", "\n"]))") }
        let rows = series.map { (labels: labels($0.labels), series: $0) }
            .sorted { $0.labels < $1.labels }
        for (index, row) in rows.enumerated() {
            let value = row.series.current
            if index == 0 { lines.append("# TYPE \(name) \(kind(value))") }
            switch value {
            case .counter(let number), .gauge(let number):
                lines.append("\(name)\(row.labels) \(text(number))")
            case .histogram(let counts, let sum):
                lines += histogram(name, row.series.labels, counts, sum)
            }
        }
        return lines.map { $0 + "\n" }.joined()
    }

    private static func kind(_ value: PrometheusMetrics.Series.Value) -> String {
        switch value {
        case .counter: "counter"
        case .gauge: "gauge"
        case .histogram: "histogram"
        }
    }

    /// The lines of a histogram, whose buckets contain those below them.
    private static func histogram(
        _ name: String, _ own: [(String, String)], _ counts: [Int], _ sum: Double
    ) -> [String] {
        var lines: [String] = []
        var total = 0
        for (index, count) in counts.enumerated() {
            total += count
            let limit =
                index < PrometheusMetrics.limits.count
                ? PrometheusMetrics.limits[index] : Double.infinity
            let all = labels(own + [("le", text(limit))])
            lines.append("\(name)_bucket\(all) \(total)")
        }
        lines.append("\(name)_sum\(labels(own)) \(text(sum))")
        lines.append("\(name)_count\(labels(own)) \(total)")
        return lines
    }

    /// `{domain="web"}`; empty without labels.
    static func labels(_ labels: [(String, String)]) -> String {
        if labels.isEmpty { return "" }
        let all = labels.map { "\(name($0))=\"\(escaped($1, ["\\", "\n", "\""]))\"" }
        return "{\(all.joined(separator: ","))}"
    }

    /// A name of letters, digits and '_', as it must be.
    private static func name(_ text: String) -> String {
        String(
            text.unicodeScalars.map { scalar in
                scalar.isASCII && (scalar.properties.isAlphabetic || ("0"..."9").contains(scalar))
                    ? Character(scalar) : "_"
            })
    }

    private static func escaped(_ text: String, _ special: Set<Unicode.Scalar>) -> String {
        var result = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            if special.contains(scalar) {
                result.append("\\")
                result.append(scalar == "\n" ? "n" : scalar)
            } else {
                result.append(scalar)
            }
        }
        return String(result)
    }

    /// `1`, `0.25`, `+Inf`.
    static func text(_ number: Double) -> String {
        if number.isNaN { return "NaN" }
        if number.isInfinite { return number > 0 ? "+Inf" : "-Inf" }
        return Int64(exactly: number).map { "\($0)" } ?? "\(number)"
    }
}

/// Writes the file of metrics so that a reader finds either all of the old one or all of the new.
enum MetricsFile {
    /// Replaces a file.
    ///
    /// What is written first, beside it, ends in `.part`, which node_exporter does not read.
    static func write(_ text: String, to path: String) throws {
        func failure() -> ToolError {
            ToolError("the metrics \(path) cannot be written: \(Output.reason())")
        }
        let part = path + ".part"
        // Others may write to the directory: what they put there is neither followed nor used.
        _ = unlink(part)
        let file = open(part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o644)
        guard file >= 0 else { throw failure() }
        do {
            defer { close(file) }
            // Another user reads it, whatever the mask says.
            guard fchmod(file, 0o644) == 0 else { throw failure() }
            try Array(text.utf8).withUnsafeBytes {
                try Output.write($0, to: file, named: "the metrics \(path)")
            }
        } catch {
            unlink(part)
            throw error
        }
        guard rename(part, path) == 0 else {
            let error = failure()
            unlink(part)
            throw error
        }
    }
}
