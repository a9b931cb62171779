import Foundation

/// Numbers for readers: three digits, and a suitable unit.
enum Format {
    static func seconds(_ value: Double) -> String {
        switch value {
        case ..<1e-6: number(value * 1e9) + " ns"
        case ..<1e-3: number(value * 1e6) + " µs"
        case ..<1: number(value * 1e3) + " ms"
        default: number(value) + " s"
        }
    }

    static func rate(_ value: Double) -> String {
        value >= 1e9 ? number(value / 1e9) + " GB/s" : number(value / 1e6) + " MB/s"
    }

    static func bytes(_ value: Double) -> String {
        switch value {
        case ..<1e4: number(value) + " B"
        case ..<1e6: number(value / 1e3) + " kB"
        case ..<1e9: number(value / 1e6) + " MB"
        default: number(value / 1e9) + " GB"
        }
    }

    /// `x 1.23`.
    static func times(_ value: Double) -> String { number(value) + " x" }

    /// A value with its unit.
    static func value(_ value: Double, _ unit: String) -> String {
        switch unit {
        case "bytes": bytes(value)
        case "s": seconds(value)
        case "x": times(value)
        default: number(value) + " " + unit
        }
    }

    static func number(_ value: Double) -> String {
        let size = abs(value)
        if size >= 100 || value == value.rounded() { return grouped(Int(value.rounded())) }
        return String(format: size >= 10 ? "%.1f" : "%.2f", value)
    }

    private static func grouped(_ value: Int) -> String {
        var text = ""
        for (index, digit) in String(abs(value)).reversed().enumerated() {
            if index > 0 && index % 3 == 0 { text.append(",") }
            text.append(digit)
        }
        return (value < 0 ? "-" : "") + String(text.reversed())
    }
}
