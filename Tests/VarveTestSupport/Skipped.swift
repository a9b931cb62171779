import Glibc

/// Says that something is not tested on this machine: prints the line, and appends it to the file
/// that `VARVE_SKIPS` names, which `Scripts/test` compares with `Tests/allowed-skips`.
///
/// - Parameter line: `skipped, WHAT: WHY`.
public func noteSkipped(_ line: String) {
    print(line)
    guard let path = getenv("VARVE_SKIPS") else { return }
    let file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0o644)
    precondition(file >= 0, "VARVE_SKIPS names a file that cannot be written: \(path)")
    // One write: lines of other processes do not mix with it.
    let bytes = Array((line + "\n").utf8)
    _ = write(file, bytes, bytes.count)
    close(file)
}
