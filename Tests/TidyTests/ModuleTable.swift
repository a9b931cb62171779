import Foundation

/// A target of a package, and the imports that its package lists.
struct PackageTarget {
    let name: String
    /// Relative to the repository.
    let path: String
    /// Names of modules: targets, and products of other packages.
    let dependencies: Set<String>

    /// Modules of the toolchain and of the system, which no package lists.
    static let platform: Set = [
        "Dispatch", "Foundation", "FoundationEssentials", "Glibc", "Synchronization", "Testing",
    ]
}

/// The allowed imports: as listed by the packages, as documented, and as in the sources.
enum ModuleTable {
    /// The Swift targets in the output of `swift package describe --type json`.
    static func described(_ json: Data) throws -> [PackageTarget] {
        struct Description: Decodable {
            struct Target: Decodable {
                let c99name: String
                let path: String
                let module_type: String
                let target_dependencies: [String]?
                let product_dependencies: [String]?
            }
            let targets: [Target]
        }
        return try JSONDecoder().decode(Description.self, from: json).targets
            .filter { $0.module_type == "SwiftTarget" }
            .map { target in
                PackageTarget(
                    name: target.c99name, path: target.path,
                    // An executable's module is imported by its name as an identifier.
                    dependencies: Set(
                        (target.target_dependencies ?? []).map {
                            $0.replacingOccurrences(of: "-", with: "_")
                        }
                    )
                    .union(target.product_dependencies ?? []))
            }
    }

    /// The output of `swift package dump-package` for a package in a folder, without dependencies.
    static func dumped(_ json: Data, in folder: String) throws -> [PackageTarget] {
        struct Dump: Decodable {
            struct Dependency: Decodable {
                /// The first is the name; the others are of other types.
                struct First: Decodable {
                    let name: String
                    init(from decoder: any Decoder) throws {
                        var values = try decoder.unkeyedContainer()
                        name = try values.decode(String.self)
                    }
                }
                let byName: First?
                let product: First?
            }
            struct Target: Decodable {
                let name: String
                let path: String?
                let dependencies: [Dependency]
            }
            let targets: [Target]
        }
        return try JSONDecoder().decode(Dump.self, from: json).targets.map { target in
            PackageTarget(
                name: target.name, path: "\(folder)/\(target.path ?? "Sources/\(target.name)")",
                dependencies: Set(
                    target.dependencies.compactMap { $0.byName?.name ?? $0.product?.name }))
        }
    }

    /// The table of modules in Architecture.md: each module, and its imports.
    static func documented(_ text: String) -> [String: Set<String>] {
        var table: [String: Set<String>] = [:]
        for line in text.split(separator: "\n") {
            let cells = line.split(separator: "|", omittingEmptySubsequences: false).map {
                $0.trimmingCharacters(in: .whitespaces)
            }
            guard cells.count == 5, cells[1].hasPrefix("`") else { continue }
            let names = cells[2].split(separator: ",").map {
                $0.trimmingCharacters(in: CharacterSet(charactersIn: " `"))
            }
            table[cells[1].trimmingCharacters(in: CharacterSet(charactersIn: "`"))] = Set(names)
        }
        return table
    }

    /// The modules that a source file imports.
    static func imports(_ text: String) -> Set<String> {
        let form =
            /(?m)^(?:@\S+ )*(?:\w+ )?import (?:(?:struct|class|enum|func) )?(\w+)/
        return Set(text.matches(of: form).map { String($0.1) })
    }

    /// Imports of a target's files that its package does not list, and listed ones that are not
    /// used.
    static func problems(of target: PackageTarget, importing imports: Set<String>) -> [String] {
        let listed = target.dependencies
        return imports.subtracting(listed).subtracting(PackageTarget.platform).sorted().map {
            "imports \($0), which Package.swift does not list for \(target.name)"
        }
            + listed.subtracting(imports).sorted().map {
                "lists \($0) for \(target.name), and no file imports it"
            }
    }
}
