import Glibc

/// What a guard has done, kept until the next checkpointer of the domain begins: a file
/// `guard-UUID.said` beside the locks, because the domain may have another ID by then.
enum GuardNote {
    private static let byteCountMax = 4096

    private static func name(_ uuid: [UInt8]) -> String {
        "guard-" + uuid.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined() + ".said"
    }

    /// Leaves a sentence.
    ///
    /// A failure is ignored: it is for people only.
    static func leave(_ text: String, _ uuid: [UInt8], in directory: String) {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return }
        defer { system_close(folder) }
        let file = system_openAt(folder, name(uuid))
        guard file >= 0 else { return }
        system_writeText(file, String(text.prefix(byteCountMax)))
        system_close(file)
    }

    /// Takes the sentence that was left; nil if there is none.
    static func take(_ uuid: [UInt8], in directory: String) -> String? {
        let folder = system_openDirectory(directory)
        guard folder >= 0 else { return nil }
        defer { system_close(folder) }
        let file = system_openPresent(folder, name(uuid))
        guard file >= 0 else { return nil }
        defer { system_close(file) }
        guard system_isRegularFile(file) else { return nil }
        let text = system_readText(file, byteCountMax: byteCountMax)
        system_remove(folder, name(uuid))
        return text.isEmpty ? nil : text
    }
}
