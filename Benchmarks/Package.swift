// swift-tools-version: 6.2

import PackageDescription

// A package of its own, so that nobody who depends on the library fetches the benchmark runner.
//
//   cd Benchmarks && swift package -c release --allow-writing-to-package-directory benchmark

let package = Package(
    name: "varve-benchmarks",
    dependencies: [
        // The library under test.
        .package(name: "varve", path: ".."),
        // Runs benchmarks and counts what they cost. Without traits it needs no jemalloc.
        .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.0", traits: []),
        // Paths in the library's interface.
        .package(url: "https://github.com/apple/swift-system", from: "1.6.0"),
    ],
    targets: [
        .executableTarget(
            name: "CaptureBenchmarks",
            dependencies: [
                .product(name: "Benchmark", package: "benchmark"),
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Varve", package: "varve"),
            ],
            path: "Benchmarks/CaptureBenchmarks",
            plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
        .executableTarget(
            name: "StreamBenchmarks",
            dependencies: [
                .product(name: "Benchmark", package: "benchmark"),
                .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "Varve", package: "varve"),
            ],
            path: "Benchmarks/StreamBenchmarks",
            plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
    ]
)
