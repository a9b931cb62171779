import CArguments

/// The words of the command line.
enum Arguments {
    /// An argument that is not text.
    struct NotText: Error {
        /// One sentence.
        let message: String
    }

    /// All but the program's name.
    ///
    /// An argument that is not UTF-8 is refused: the file that it names could not be found again,
    /// and another one might be.
    static func read() throws(NotText) -> [String] {
        var result: [String] = []
        for index in 1..<max(1, carguments_count()) {
            guard let argument = carguments_value(index) else { break }
            guard let text = String(validatingCString: argument) else {
                throw NotText(
                    message: "'\(String(cString: argument))' is not UTF-8; give the file or store "
                        + "a name that is, or go to its directory and name it from there")
            }
            result.append(text)
        }
        return result
    }
}
