// swift-tools-version: 6.2

import PackageDescription

// Targets stand in dependency order: nothing imports a target below its own group.
// The table of who may import whom is checked by Tests/TidyTests.

let package = Package(
    name: "varve",
    products: [
        .library(name: "Varve", targets: ["Varve"]),
        // The same without live Xen domains.
        .library(name: "VarveCore", targets: ["VarveCore"]),
        // Checks for an embedder's own guest, for its tests.
        .library(name: "GuestConformance", targets: ["GuestConformance"]),
        .executable(name: "varve", targets: ["varve-cli"]),
        .executable(name: "timetravel", targets: ["TimeTravel"]),
        // For the package in Benchmarks alone; the underscore says that it is no API.
        .library(name: "_VarveStages", targets: ["_VarveStages"]),
    ],
    dependencies: [
        // FilePath and Errno in the store's interface, so that no path is a bare string.
        .package(url: "https://github.com/apple/swift-system", from: "1.6.0"),
        // The command line of Examples/varve and Examples/TimeTravel. The library does not use it.
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.6.0"),
        // Metrics of 'varve xen serve': its counters are those of swift-metrics, so that a program
        // that takes the service's code over can record them by a backend of its own. The tool
        // alone depends on it; the library does not.
        .package(url: "https://github.com/apple/swift-metrics", from: "2.5.0"),
    ],
    targets: [
        // C, by module map: each stands for one Debian package.
        .systemLibrary(name: "CZstd", providers: [.apt(["libzstd-dev"])]),
        .systemLibrary(name: "CLMDB", providers: [.apt(["liblmdb-dev"])]),
        // libdevmapper: snapshots of thin volumes in the pause take milliseconds through it, and a
        // third of a second through dmsetup or lvm commands.
        .systemLibrary(name: "CDeviceMapper", providers: [.apt(["libdevmapper-dev"])]),
        .systemLibrary(
            name: "CSQLite", path: "Examples/TimeTravel/CSQLite",
            providers: [.apt(["libsqlite3-dev"])]),

        // C of our own.
        .target(name: "CPageKernels"),
        .target(name: "CLinux"),
        // Declarations of what is used of libxenctrl, libxenguest, libxenforeignmemory, libxenstore
        // and libxenlight, the only way to a domain that Xen supports. They are loaded at run time
        // (decision 0030), so that one build runs without Xen and with each version of it; neither
        // the build nor the program needs a package of Xen.
        .target(name: "CXen"),
        // The arguments of the command line tool where /proc is not mounted.
        .target(name: "CArguments", path: "Examples/CArguments"),

        // Values and protocols.
        .target(name: "GuestModel"),
        .target(name: "GuestConformance", dependencies: ["GuestModel"]),

        // The repository.
        .target(
            name: "CheckpointFormat", dependencies: ["GuestModel", "CPageKernels", "CZstd"]),
        .target(
            name: "PackStore",
            dependencies: [
                "CheckpointFormat", "GuestModel", "CLinux",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .target(
            name: "LMDBTables", dependencies: ["CheckpointFormat", "PackStore", "CLMDB"]),
        .target(
            name: "CheckpointIndex",
            dependencies: ["CheckpointFormat", "GuestModel", "LMDBTables", "PackStore"]),
        .target(
            name: "CheckpointStore",
            dependencies: [
                "CheckpointFormat", "CheckpointIndex", "GuestModel", "LMDBTables", "PackStore",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .target(
            name: "CheckpointUpkeep",
            dependencies: [
                "CheckpointFormat", "CheckpointIndex", "CheckpointStore", "GuestModel",
                "LMDBTables", "PackStore",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),

        // Capture, restore, revert.
        .target(
            name: "CheckpointEngine",
            dependencies: [
                "CheckpointIndex", "CheckpointStore", "CheckpointUpkeep", "PackStore",
                "CheckpointFormat", "GuestModel", "CPageKernels",
            ]),

        // Guests.
        .target(
            name: "LinuxGuest",
            dependencies: [
                "GuestModel", "CLinux", "CPageKernels",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),

        // Disks that are cut with the memory.
        .target(
            name: "GuestDisks",
            dependencies: [
                "GuestModel", "CDeviceMapper", "CLinux",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),

        .target(name: "XenStream", dependencies: ["GuestModel"]),
        .target(name: "XenGuest", dependencies: ["GuestModel", "XenStream", "CLinux", "CXen"]),

        // The facade: what needs no Xen, and all of it.
        .target(
            name: "VarveCore",
            dependencies: [
                "CheckpointEngine", "CheckpointFormat", "CheckpointIndex", "CheckpointStore",
                "CheckpointUpkeep", "PackStore", "GuestDisks", "GuestModel",
                "LinuxGuest", "XenStream",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .target(
            name: "Varve",
            dependencies: [
                "CheckpointEngine", "CheckpointIndex", "CheckpointStore", "GuestDisks",
                "GuestModel", "LinuxGuest", "PackStore", "VarveCore", "XenGuest", "XenStream",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),

        // Single stages of the pipeline, for Benchmarks to time: it sees no `package` declaration.
        .target(
            name: "_VarveStages",
            dependencies: [
                "CPageKernels", "CheckpointFormat", "CheckpointIndex", "CheckpointStore",
                "GuestModel", "XenStream",
            ],
            path: "Benchmarks/Stages"),
        // Counts of allocations, calls and bytes with their budgets: Scripts/benchmark --counts.
        .target(name: "CAllocations", path: "Benchmarks/Counts/CAllocations"),
        .executableTarget(
            name: "varve-counts",
            dependencies: [
                "CAllocations", "CheckpointEngine", "CheckpointFormat", "CheckpointIndex",
                "CheckpointStore", "PackStore",
                "GuestModel", "LinuxGuest", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Benchmarks/Counts/Command"),

        // Examples: in this package, so that one build serves library, tool and tests.
        .executableTarget(
            name: "varve-cli",
            dependencies: [
                "CArguments", "Varve", .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "CoreMetrics", package: "swift-metrics"),
            ],
            path: "Examples/varve", exclude: ["systemd"]),
        .executableTarget(
            name: "TimeTravel",
            dependencies: [
                "VarveCore", "CSQLite", .product(name: "SystemPackage", package: "swift-system"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Examples/TimeTravel",
            exclude: ["CSQLite"]),

        // The programs of the articles, word for word.
        .executableTarget(
            name: "guide", dependencies: ["GuestConformance", "VarveCore"],
            path: "Examples/Guide"),

        // Tests.
        .target(
            name: "VarveTestSupport",
            dependencies: [
                "CheckpointStore", "PackStore", "GuestModel",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Tests/VarveTestSupport"),
        // The random walk over the simulated disk and the long run over a real one: Scripts/soak.
        .target(
            name: "SoakRuns",
            dependencies: [
                "CheckpointEngine", "CheckpointFormat", "CheckpointIndex", "CheckpointStore",
                "CheckpointUpkeep", "PackStore", "GuestModel",
                "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Tests/Soak/Runs"),
        .executableTarget(
            name: "varve-soak",
            dependencies: [
                "SoakRuns", .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Tests/Soak/Command"),
        // Stores with right checksums around what cannot be, and what anybody may do with them.
        .target(
            name: "Forgeries",
            dependencies: [
                "CheckpointEngine", "CheckpointFormat", "CheckpointIndex", "CheckpointStore",
                "CheckpointUpkeep", "PackStore", "GuestModel",
                "VarveTestSupport", .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Tests/ForgedStores/Forgeries"),
        // What libFuzzer calls; the tests run it over its corpus.
        .target(
            name: "StoreFuzz",
            dependencies: ["CheckpointFormat", "CheckpointIndex", "PackStore", "GuestModel"],
            path: "Tests/StoreFuzz", exclude: ["Corpus"]),
        .executableTarget(
            name: "varve-forged",
            dependencies: [
                "Forgeries", .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Tests/ForgedStores/Command"),
        .testTarget(
            name: "ForgedStoreTests",
            dependencies: [
                "CheckpointEngine", "CheckpointFormat", "CheckpointIndex", "CheckpointStore",
                "CheckpointUpkeep", "PackStore", "Forgeries",
                "GuestModel", "StoreFuzz", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .testTarget(
            name: "PageKernelsTests",
            dependencies: ["CPageKernels", "GuestModel", "VarveTestSupport"]),
        .testTarget(
            name: "XenStreamTests", dependencies: ["GuestModel", "VarveTestSupport", "XenStream"],
            resources: [.copy("Corpus")]),
        .testTarget(name: "GuestModelTests", dependencies: ["GuestModel", "VarveTestSupport"]),
        .testTarget(
            name: "GuestConformanceTests",
            dependencies: [
                "GuestConformance", "GuestModel", "LinuxGuest", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .testTarget(
            name: "LinuxGuestTests",
            dependencies: [
                "GuestModel", "LinuxGuest", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .testTarget(
            name: "GuestDisksTests",
            dependencies: [
                // Who uses disks, over simulated thin pools.
                "CheckpointEngine", "CheckpointIndex", "CheckpointStore", "PackStore", "Varve",
                "XenGuest", "XenStream",
                "GuestConformance", "GuestDisks", "GuestModel", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            exclude: ["fake-rbd.sh"]),
        .testTarget(
            name: "XenGuestTests",
            dependencies: [
                // Memory of a simulated domain is a memfd, which glibc hides from Swift; functions of
                // simulated libraries are called through CXen's table.
                "CLinux", "CXen", "CheckpointEngine", "CheckpointFormat", "CheckpointIndex",
                "CheckpointStore",
                "CheckpointUpkeep", "GuestConformance", "GuestDisks", "GuestModel", "PackStore",
                "Varve", "VarveTestSupport", "XenGuest", "XenStream",
                // Its service, with simulated domains.
                "varve-cli",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            exclude: ["fake-xl.sh"]),
        .testTarget(
            name: "CheckpointFormatTests",
            dependencies: ["CheckpointFormat", "GuestModel", "VarveTestSupport"]),
        .testTarget(
            name: "CheckpointStoreTests",
            dependencies: [
                // The independent reader unpacks with zstd itself.
                "CZstd", "CheckpointEngine", "CheckpointFormat", "CheckpointIndex",
                "CheckpointStore", "CheckpointUpkeep", "LMDBTables", "PackStore", "GuestModel",
                "VarveTestSupport", .product(name: "SystemPackage", package: "swift-system"),
            ],
            resources: [.copy("Golden")]),
        .testTarget(
            name: "VarveTests",
            dependencies: [
                "Varve", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .testTarget(
            name: "CommandLineTests",
            dependencies: [
                "CheckpointEngine", "CheckpointStore", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        // The service of the command line tool, without Xen: its domains are simulated.
        .testTarget(
            name: "CheckpointServiceTests",
            dependencies: [
                "CheckpointEngine", "GuestModel", "PackStore", "Varve", "VarveTestSupport",
                "varve-cli", .product(name: "CoreMetrics", package: "swift-metrics"),
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        .testTarget(name: "TidyTests", dependencies: ["VarveTestSupport"]),
        // Runs in dom0 of the rig, beside stock xl: Scripts/xen-test.
        .executableTarget(
            name: "XenCases",
            dependencies: [
                "CheckpointEngine", "CheckpointFormat", "CheckpointStore", "GuestModel", "Varve",
                "XenGuest",
                .product(name: "SystemPackage", package: "swift-system"),
            ],
            path: "Tests/XenRig/Cases"),
        .testTarget(
            name: "CheckpointEngineTests",
            dependencies: [
                "CheckpointEngine", "CheckpointFormat", "CheckpointIndex", "CheckpointStore",
                "CheckpointUpkeep", "PackStore", "GuestModel",
                "LinuxGuest", "SoakRuns", "VarveTestSupport",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
    ]
)

// The interface for C. It is of Swift 6.3, whose `@c @implementation` has the compiler compare each
// function with the header; with an older toolchain everything else can still be built.
#if compiler(>=6.3)
    package.products.append(
        // Scripts/libvarve builds it as the libvarve.so that programs link with.
        .library(name: "varve-c", type: .dynamic, targets: ["VarveC"]))
    package.targets += [
        // The headers, varve.h with what it includes and varve_xen.h, and the few functions that are
        // C themselves.
        .target(name: "CVarve", exclude: ["libvarve.map"]),
        // Over all of the facade: live domains cost the library no dependency, because Xen's
        // libraries are loaded when they are used.
        .target(
            name: "VarveC",
            dependencies: [
                "CVarve", "CheckpointEngine", "CheckpointFormat", "CheckpointIndex",
                "CheckpointStore", "CheckpointUpkeep", "GuestDisks", "GuestModel", "LinuxGuest",
                "PackStore", "Varve", "VarveCore",
                .product(name: "SystemPackage", package: "swift-system"),
            ]),
        // The cost of the interface for C beside the same captures from Swift.
        .executableTarget(
            name: "varve-boundary", dependencies: ["CVarve", "VarveC", "VarveCore"],
            path: "Benchmarks/Boundary"),
    ]
#endif

for target in package.targets where target.type != .system {
    if target.name.hasPrefix("C") && !target.name.hasPrefix("Checkpoint") { continue }
    target.swiftSettings = [
        // https://github.com/swiftlang/swift-evolution/blob/main/proposals/0335-existential-any.md
        .enableUpcomingFeature("ExistentialAny"),
        // https://github.com/swiftlang/swift-evolution/blob/main/proposals/0444-member-import-visibility.md
        .enableUpcomingFeature("MemberImportVisibility"),
        // https://github.com/swiftlang/swift-evolution/blob/main/proposals/0409-access-level-on-imports.md
        .enableUpcomingFeature("InternalImportsByDefault"),
        .treatAllWarnings(as: .error),
    ]
}
