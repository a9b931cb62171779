import Foundation

/// What Scripts/benchmark tells the suites, by the environment.
public enum Settings {
    private static func value(_ name: String) -> String? {
        ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 }
    }

    /// `VARVE_BENCHMARK_QUICK=1`: small sizes and few rounds, to see that all works.
    public static let isQuick = value("VARVE_BENCHMARK_QUICK") == "1"

    /// `VARVE_BENCHMARK_LIST=1`: suites print the ids of their benchmarks and run none.
    public static let isListing = value("VARVE_BENCHMARK_LIST") == "1"

    /// `VARVE_FIGURES`: the file that figures are appended to; none are written without it.
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

    /// `VARVE_BENCHMARK_DIRECTORY`: where repositories go; on a disk, not in memory.
    public static let directory = value("VARVE_BENCHMARK_DIRECTORY") ?? NSTemporaryDirectory()

    /// `full` unless quick.
    public static func sized<T>(_ full: T, quick: T) -> T { isQuick ? quick : full }
}
