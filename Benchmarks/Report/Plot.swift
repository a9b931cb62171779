import Foundation
import Measuring

/// A plot of some curves.
struct Plot {
    /// One curve.
    struct Curve {
        let name: String
        let points: [(x: Double, y: Double)]
    }

    let name: String
    let title: String
    let xTitle: String
    let yTitle: String
    let curves: [Curve]
    /// Each axis is logarithmic.
    var isLogarithmic = (x: true, y: true)

    private static let colours = ["#0a58ca", "#c2410c", "#15803d", "#7e22ce", "#475569", "#b91c1c"]
    private static let box = (left: 80.0, right: 620.0, top: 40.0, bottom: 330.0)

    /// The drawing.
    var svg: String {
        let xs = curves.flatMap { $0.points.map(\.x) }
        let ys = curves.flatMap { $0.points.map(\.y) }
        let across = Axis(values: xs, isLogarithmic: isLogarithmic.x, fromZero: false)
        let up = Axis(values: ys, isLogarithmic: isLogarithmic.y, fromZero: true)
        let box = Plot.box
        func place(_ point: (x: Double, y: Double)) -> (x: Double, y: Double) {
            (
                box.left + across.share(point.x) * (box.right - box.left),
                box.bottom - up.share(point.y) * (box.bottom - box.top)
            )
        }
        var lines = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 900 400\" "
                + "font-family=\"sans-serif\" font-size=\"12\">",
            "<rect width=\"900\" height=\"400\" fill=\"white\"/>",
            text(box.left, 22, title, "start", size: 14),
            text((box.left + box.right) / 2, 375, xTitle, "middle"),
            text(box.left - 70, 36, yTitle, "start"),
        ]
        for tick in up.ticks {
            let y = place((xs.first ?? 1, tick)).y
            lines.append(line(box.left, y, box.right, y))
            lines.append(text(box.left - 6, y + 4, Format.number(tick), "end"))
        }
        for tick in across.ticks {
            let x = place((tick, ys.first ?? 1)).x
            lines.append(line(x, box.top, x, box.bottom))
            lines.append(text(x, box.bottom + 18, Format.number(tick), "middle"))
        }
        for (index, curve) in curves.enumerated() {
            let colour = Plot.colours[index % Plot.colours.count]
            let places = curve.points.sorted { $0.x < $1.x }.map(place)
            let path = places.map { String(format: "%.1f,%.1f", $0.x, $0.y) }
            lines.append(
                "<polyline fill=\"none\" stroke=\"\(colour)\" stroke-width=\"1.5\" points=\""
                    + path.joined(separator: " ") + "\"/>")
            if places.count < 40 {
                for point in places {
                    lines.append(
                        String(
                            format: "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%@\"/>",
                            point.x, point.y, colour))
                }
            }
            let y = box.top + 16 + 20 * Double(index)
            lines.append(
                "<rect x=\"640\" y=\"\(y - 9)\" width=\"10\" height=\"10\" fill=\"\(colour)\"/>")
            lines.append(text(656, y, curve.name, "start"))
        }
        lines.append("</svg>")
        return lines.joined(separator: "\n") + "\n"
    }

    private func text(
        _ x: Double, _ y: Double, _ words: String, _ anchor: String, size: Int = 12
    ) -> String {
        let safe = words.replacingOccurrences(of: "&", with: "&amp;")
            .replacingOccurrences(of: "<", with: "&lt;")
        return String(
            format: "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%@\" font-size=\"%d\">%@</text>",
            x, y, anchor, size, safe)
    }

    private func line(_ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double) -> String {
        String(
            format: "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>",
            x1, y1, x2, y2)
    }
}

/// One direction of a plot.
private struct Axis {
    private let low: Double
    private let high: Double
    private let isLogarithmic: Bool
    let ticks: [Double]

    init(values: [Double], isLogarithmic: Bool, fromZero: Bool) {
        let least = values.min() ?? 1
        let most = max(values.max() ?? 1, least * 1.0001)
        // A logarithm needs a positive number.
        self.isLogarithmic = isLogarithmic && least > 0
        if self.isLogarithmic {
            low = fromZero ? log10(least).rounded(.down) : log10(least)
            high = fromZero ? log10(most * 1.05).rounded(.up) : log10(most)
            let steps = Int(low.rounded(.down))...Int(high.rounded(.up))
            let marks: [Double] = high - low < 2.5 ? [1, 2, 5] : [1]
            let (low, high) = (low, high)
            ticks = steps.flatMap { power in marks.map { $0 * pow(10, Double(power)) } }.filter {
                log10($0) >= low - 1e-9 && log10($0) <= high + 1e-9
            }
        } else {
            low = fromZero ? 0 : least
            high = fromZero ? most * 1.1 : most
            let (low, high) = (low, high)
            ticks = (0...4).map { low + (high - low) * Double($0) / 4 }
        }
    }

    func share(_ value: Double) -> Double {
        ((isLogarithmic ? log10(value) : value) - low) / max(high - low, 1e-12)
    }
}

/// The plots of a run's figures.
enum Plots {
    static func all(of results: Results) -> [Plot] {
        var plots: [Plot] = []
        plots.append(
            Plot(
                name: "guest-size", title: "The pause over the guest's size, 1 % dirty",
                xTitle: "guest, GiB", yTitle: "ms", curves: curves(results, suite: "size")))
        plots.append(
            Plot(
                name: "dirty-share", title: "A capture over the share of dirty pages",
                xTitle: "dirty pages", yTitle: "ms",
                curves: shares(results)))
        plots.append(
            Plot(
                name: "chain-length", title: "Restore and capture over the place in the chain",
                xTitle: "checkpoint", yTitle: "ms", curves: curves(results, suite: "chain")))
        if !results.soak.isEmpty {
            plots.append(
                Plot(
                    name: "soak-size", title: "A store's size under retention",
                    xTitle: "checkpoints taken", yTitle: "MB",
                    curves: [
                        Plot.Curve(
                            name: "packs",
                            points: results.soak.map { ($0.checkpoints, $0.byteCount / 1e6) })
                    ], isLogarithmic: (false, false)))
        }
        return plots.filter { $0.curves.contains { $0.points.count > 1 } }
    }

    /// The series of a suite that belong to a curve.
    private static func curves(_ results: Results, suite: String) -> [Plot.Curve] {
        let placed = results.suite(suite).flatMap(\.series).filter { $0.curve != nil }
        var names: [String] = []
        for name in placed.compactMap(\.curve) where !names.contains(name) { names.append(name) }
        return names.map { name in
            Plot.Curve(
                name: name,
                points: placed.filter { $0.curve == name }.compactMap { series in
                    series.x.map { ($0, series.seconds.p50 * 1e3) }
                })
        }
    }

    private static func shares(_ results: Results) -> [Plot.Curve] {
        let figures = results.suite("share")
        let names = [
            "until durable", "pause", "memcpy of the pages",
            "write and fdatasync of what was stored",
        ]
        return names.map { name in
            Plot.Curve(
                name: name,
                points: figures.compactMap { figure in
                    guard let series = figure.series(name), let subject = figure.subject,
                        let bytes = subject.byteCount
                    else { return nil }
                    return (Double(bytes / 4096), series.seconds.p50 * 1e3)
                })
        }
    }
}
