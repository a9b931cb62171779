import Foundation

/// The style rules that a program can check.
///
/// Each takes a file's text and returns the violations.
enum TidyRules {
    /// Lines of a Swift or C file at most 100 columns, files at most 600 lines.
    static func lengths(_ text: String) -> [String] {
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        var found = lines.enumerated().filter { $0.element.count > 100 }.map {
            "line \($0.offset + 1) has \($0.element.count) columns"
        }
        if lines.count > 601 { found.append("\(lines.count - 1) lines") }
        return found
    }

    /// Functions of at most 70 lines.
    static func functions(_ text: String) -> [String] {
        var found: [String] = []
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        let start = /^(\s*)(?:@\S+ )*(?:[a-z()]+ )*(?:func |init[?(<]|deinit)/
        for (number, line) in lines.enumerated() {
            guard let match = line.firstMatch(of: start) else { continue }
            // The formatter puts the closing brace under the first letter of the declaration.
            let closing = String(match.1) + "}"
            guard let count = lines[number...].firstIndex(of: closing).map({ $0 - number + 1 }),
                count > 70, !line.hasSuffix("}")
            else { continue }
            // A protocol's requirement has no body: the protocol ends before such a brace comes.
            let isRequirement = lines[number + 1..<number + count - 1].contains {
                $0.hasPrefix("}") && !closing.hasPrefix("}")
            }
            if isRequirement { continue }
            found.append("line \(number + 1): a function of \(count) lines")
        }
        return found
    }

    /// Words that must not be in the repository.
    static func words(_ text: String) -> [String] {
        // Joined here, so that this file does not violate its own rule.
        let banned = ["FIX" + "ME", "TO" + "DO", "/wo" + "rk/", "tr" + "y!", "X" + "XX "]
        return banned.filter { text.contains($0) }.map { "contains '\($0)'" }
    }

    /// Only the trampoline files call the kernel.
    static func kernelCalls(_ text: String, file: String) -> [String] {
        if file.hasSuffix("/Syscalls.swift") { return [] }
        let calls = /\b(?:pread|pwrite|fdatasync|fsync|ftruncate|flock|ioctl|unlink|rename)\(/
        return text.split(separator: "\n").filter { line in
            let code = line.trimmingCharacters(in: .whitespaces)
            return !code.hasPrefix("//") && code.firstMatch(of: calls) != nil
                && code.firstMatch(of: /func |\.(?:rename|sync)|system_/) == nil
        }.map { "calls the kernel: \($0)" }
    }

    /// Markdown files have one title, and text below it.
    static func markdown(_ text: String) -> [String] {
        var inCode = false
        var titles = 0
        var words = 0
        for line in text.split(separator: "\n") {
            if line.hasPrefix("```") { inCode.toggle() }
            if !inCode && line.hasPrefix("# ") { titles += 1 }
            words += line.split(separator: " ").count
        }
        var found = titles == 1 ? [] : ["\(titles) titles"]
        if words < 30 { found.append("is next to empty") }
        return found
    }

    /// Rules for names of files.
    static func name(_ path: String) -> [String] {
        let banned = ["Utils", "Helpers", "Common", "Manager"]
        var found = banned.filter { path.contains($0) }.map { "is called \($0)" }
        if path.contains(" ") { found.append("has a space in its path") }
        return found
    }
}
