import Foundation
import Glibc
import Measuring

// Creates the report from the figures that the suites recorded.
//
//   report make FIGURES DIRECTORY [--counts JSON] [--soak CSV] [--xen TEXT] [--quick]
//       results.json in DIRECTORY, and from it RESULTS.md and plots/*.svg
//   report render DIRECTORY
//       RESULTS.md and the plots again, from the existing results.json

@main
struct ReportCommand {
    private static let usage = """
        usage: report make FIGURES DIRECTORY [--counts JSON] [--soak CSV] [--xen TEXT] [--quick]
               report render DIRECTORY
        """

    static func main() {
        do {
            try run(Array(CommandLine.arguments.dropFirst()))
        } catch {
            FileHandle.standardError.write(Data("report: \(error)\n".utf8))
            exit(1)
        }
    }

    private static func run(_ arguments: [String]) throws {
        var words = arguments
        func take(_ option: String) -> String? {
            guard let place = words.firstIndex(of: option), place + 1 < words.count else {
                return nil
            }
            defer { words.removeSubrange(place...place + 1) }
            return words[place + 1]
        }
        let counts = take("--counts")
        let soak = take("--soak")
        let xen = take("--xen")
        let isQuick = words.contains("--quick")
        words.removeAll { $0 == "--quick" }
        if words.count == 3, words[0] == "make" {
            var results = try Results(figures: words[1], isQuick: isQuick)
            try results.addCounts(counts)
            try results.addSoak(soak)
            try results.addXen(xen)
            try results.write(to: words[2] + "/results.json")
            try render(results, in: words[2])
        } else if words.count == 2, words[0] == "render" {
            try render(try Results(reading: words[1] + "/results.json"), in: words[1])
        } else {
            FileHandle.standardError.write(Data((usage + "\n").utf8))
            exit(2)
        }
    }

    private static func render(_ results: Results, in directory: String) throws {
        let plots = directory + "/plots"
        try? FileManager.default.removeItem(atPath: plots)
        try FileManager.default.createDirectory(atPath: plots, withIntermediateDirectories: true)
        let drawn = Plots.all(of: results)
        for plot in drawn {
            try plot.svg.write(
                toFile: "\(plots)/\(plot.name).svg", atomically: true, encoding: .utf8)
        }
        let shortfalls = try? String(
            contentsOfFile: directory + "/SHORTFALLS.md", encoding: .utf8)
        let page = Page(results: results, plots: drawn, shortfalls: shortfalls ?? "")
        try page.text.write(
            toFile: directory + "/RESULTS.md", atomically: true, encoding: .utf8)
    }
}
