// swift-tools-version: 6.2

import PackageDescription

let package = Package(
    name: "emulator",
    dependencies: [.package(name: "varve", path: "../..")],
    targets: [
        .executableTarget(
            name: "emulator", dependencies: [.product(name: "VarveCore", package: "varve")],
            path: ".", exclude: ["check"], sources: ["emulator.swift"],
            swiftSettings: [.swiftLanguageMode(.v6)])
    ])
