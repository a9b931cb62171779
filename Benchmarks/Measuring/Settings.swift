import Foundation

/// The environment variables by which Scripts/benchmark configures the suites.
public enum Settings {
    private static func value(_ name: String) -> String? {
        ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 }
    }

    /// `VARVE_BENCHMARK_QUICK=1`: small sizes and few rounds, to check that everything works.
    public static let isQuick = value("VARVE_BENCHMARK_QUICK") == "1"

    /// `VARVE_BENCHMARK_LIST=1`: suites print the IDs of their benchmarks and run none.
    public static let isListing = value("VARVE_BENCHMARK_LIST") == "1"

    /// `VARVE_FIGURES`: the file that figures are appended to; if unset, none are written.
    public static let figures = value("VARVE_FIGURES")

    /// `VARVE_IMAGES`: a directory of raw memory images of a real guest, `guest-NN.raw`.
    public static let images: [String] = {
        guard let directory = value("VARVE_IMAGES") else { return [] }
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        return names.filter { $0.hasPrefix("guest-") && $0.hasSuffix(".raw") }.sorted().map {
            directory + "/" + $0
        }
    }()

    /// `VARVE_CLI`: the command line tool.
    public static let tool = value("VARVE_CLI") ?? "varve"

    /// `VARVE_BENCHMARK_DIRECTORY`: the directory for repositories; on a disk, not in memory.
    public static let directory = value("VARVE_BENCHMARK_DIRECTORY") ?? NSTemporaryDirectory()

    /// `full` unless quick.
    public static func sized<T>(_ full: T, quick: T) -> T { isQuick ? quick : full }
}
