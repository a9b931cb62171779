// swift-tools-version: 6.2

import PackageDescription

// A package of its own, so that nobody who depends on the library fetches the benchmark runner.
//
//   Scripts/benchmark [--quick]      everything, and the report
//   cd Benchmarks && swift package -c release --allow-writing-to-package-directory benchmark
//
// A suite is an executable in Benchmarks/; `Measuring` is what they share, `Report` makes
// RESULTS.md of what they recorded. `Stages` is a target of the library's own package.

/// A suite of benchmarks, and what else it measures.
func suite(_ name: String, _ dependencies: Target.Dependency...) -> Target {
    .executableTarget(
        name: name,
        dependencies: [
            "Measuring", .product(name: "Benchmark", package: "benchmark"),
        ] + dependencies,
        path: "Benchmarks/\(name)",
        plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")])
}

let varve = Target.Dependency.product(name: "Varve", package: "varve")
let stages = Target.Dependency.product(name: "VarveStages", package: "varve")
let paths = Target.Dependency.product(name: "SystemPackage", package: "swift-system")

let package = Package(
    name: "varve-benchmarks",
    dependencies: [
        // The library under test.
        .package(name: "varve", path: ".."),
        // Runs benchmarks, each in a process of its own. Without traits it needs no jemalloc.
        .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.0", traits: []),
        // Paths in the library's interface.
        .package(url: "https://github.com/apple/swift-system", from: "1.6.0"),
    ],
    targets: [
        .target(
            name: "Measuring",
            dependencies: [.product(name: "Benchmark", package: "benchmark")],
            path: "Measuring"),
        .executableTarget(name: "report", dependencies: ["Measuring"], path: "Report"),
        suite("StageBenchmarks", varve, stages),
        suite("CaptureBenchmarks", varve),
        suite("StoreBenchmarks", varve),
        suite("StreamBenchmarks", varve, paths),
        suite("PeerBenchmarks"),
    ]
)
