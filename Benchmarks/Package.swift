// swift-tools-version: 6.2

import PackageDescription

// A package of its own, so that packages that use the library do not fetch the benchmark runner.
//
//   Scripts/benchmark [--quick]      everything, and the report
//   cd Benchmarks && swift package -c release --allow-writing-to-package-directory benchmark
//
// A suite is an executable in Benchmarks/; `Measuring` is their common code, `Report` creates
// RESULTS.md from their figures. `Stages` is a target of the library's own package.

/// A suite of benchmarks, and the modules that it needs.
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
let stages = Target.Dependency.product(name: "_VarveStages", package: "varve")
let paths = Target.Dependency.product(name: "SystemPackage", package: "swift-system")

let package = Package(
    name: "varve-benchmarks",
    dependencies: [
        // The library under test.
        .package(name: "varve", path: ".."),
        // Runs each benchmark in its own process. Without traits it needs no jemalloc.
        .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.0", traits: []),
        // Paths in the library's API.
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
        suite("StreamBenchmarks", varve, stages, paths),
        suite("PeerBenchmarks"),
    ]
)
