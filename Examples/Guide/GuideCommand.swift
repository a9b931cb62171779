import VarveCore

// The programs of the articles in Varve.docc. Each function appears in its article verbatim, which
// a test checks. Run one with a directory that does not exist yet:
//
//   guide first-checkpoint DIRECTORY
//   guide fill DIRECTORY                 captures until it is killed
//   guide after-a-crash DIRECTORY        continues from there
//   guide your-own-guest DIRECTORY       checks a guest of its own, and captures it

@main
enum GuideCommand {
    static func main() throws {
        let arguments = CommandLine.arguments.dropFirst()
        guard arguments.count == 2, let name = arguments.first, let path = arguments.last else {
            throw Usage()
        }
        let store = FilePath(path)
        switch name {
        case "first-checkpoint": try firstCheckpoint(in: store)
        case "fill": try fillUntilKilled(store)
        case "after-a-crash": try goOnAfterACrash(store)
        case "your-own-guest": try yourOwnGuest(in: store)
        default: throw Usage()
        }
    }

    /// The usage message.
    struct Usage: Error, CustomStringConvertible {
        let description =
            "usage: guide first-checkpoint|fill|after-a-crash|your-own-guest DIRECTORY"
    }
}
