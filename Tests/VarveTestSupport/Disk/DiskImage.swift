import Glibc

// The contents of a simulated disk at one moment. Everything has two states:
//
//   durable   what a power cut certainly leaves
//   visible   what processes see: the durable state and all changes since
//
// and the ordered changes that lead from one to the other. `sync` of a file makes its changes
// durable, `syncDirectory` the names of a directory; nothing else does. It is a value type, so that
// a test can keep one for each call of a run and cut the power in each of them later.

/// Files, directories, and their changes that are not durable yet.
package struct DiskImage: Sendable {
    /// The unit that a power cut keeps or loses; sectors of a torn write are counted in it too.
    static let sectorByteCount = 512

    /// A change of a file.
    enum FileChange: Sendable {
        case write([UInt8], at: Int)
        case truncate(Int)
    }

    struct File: Sendable {
        var durable: [UInt8] = []
        var visible: [UInt8] = []
        var pending: [FileChange] = []
    }

    /// A change of a directory's names.
    enum NameChange: Sendable {
        case set(String, Int)
        case remove(String)
        /// Both names at once: a rename is atomic.
        case rename(String, to: String, Int)
    }

    struct Directory: Sendable {
        var durable: [String: Int] = [:]
        var visible: [String: Int] = [:]
        var pending: [NameChange] = []
    }

    /// The file number that stands for a directory.
    private static let directoryNumber = -1

    var files: [Int: File] = [:]
    var directories: [String: Directory] = ["": Directory()]
    private var nextNumber = 1

    package init() {}

    // MARK: - Reading

    /// The directory and the name of a path.
    private static func split(_ path: String) -> (directory: String, name: String) {
        guard let slash = path.lastIndex(of: "/") else { return ("", path) }
        return (String(path[..<slash]), String(path[path.index(after: slash)...]))
    }

    /// The number of a file that exists.
    func number(_ path: String) -> Int? {
        let (directory, name) = DiskImage.split(path)
        guard let number = directories[directory]?.visible[name],
            number != DiskImage.directoryNumber
        else { return nil }
        return number
    }

    /// A file's bytes as processes see them; nil if there is none.
    package func contents(_ path: String) -> [UInt8]? {
        number(path).flatMap { files[$0]?.visible }
    }

    /// The names in a directory; nil if there is none.
    package func names(_ directory: String) -> [String]? {
        directories[directory].map { Array($0.visible.keys) }
    }

    /// Bytes of all files together.
    package var byteCount: Int {
        directories.values.reduce(0) { sum, directory in
            sum + directory.visible.values.reduce(0) { $0 + (files[$1]?.visible.count ?? 0) }
        }
    }

    // MARK: - Changing names

    mutating func create(_ path: String) -> Int? {
        if let number = number(path) { return number }
        let (directory, name) = DiskImage.split(path)
        guard directories[directory] != nil else { return nil }
        let number = nextNumber
        nextNumber += 1
        files[number] = File()
        change(directory, .set(name, number))
        return number
    }

    mutating func createDirectory(_ path: String) -> Bool {
        if directories[path] != nil { return true }
        let (parent, name) = DiskImage.split(path)
        guard directories[parent] != nil else { return false }
        directories[path] = Directory()
        change(parent, .set(name, DiskImage.directoryNumber))
        return true
    }

    mutating func rename(_ path: String, to newPath: String) -> Bool {
        let (directory, name) = DiskImage.split(path)
        let (newDirectory, newName) = DiskImage.split(newPath)
        precondition(directory == newDirectory, "renames stay in their directory")
        guard let number = number(path) else { return false }
        change(directory, .rename(name, to: newName, number))
        return true
    }

    mutating func link(_ path: String, to newPath: String) -> Bool {
        let (directory, name) = DiskImage.split(newPath)
        guard let number = number(path), directories[directory] != nil else { return false }
        precondition(self.number(newPath) == nil, "a second name is a new one")
        change(directory, .set(name, number))
        return true
    }

    mutating func remove(_ path: String) -> Bool {
        let (directory, name) = DiskImage.split(path)
        guard number(path) != nil else { return false }
        change(directory, .remove(name))
        return true
    }

    private mutating func change(_ directory: String, _ change: NameChange) {
        directories[directory]?.pending.append(change)
        directories[directory].map { found in
            var names = found.visible
            DiskImage.apply(change, to: &names)
            directories[directory]?.visible = names
        }
    }

    static func apply(_ change: NameChange, to names: inout [String: Int]) {
        switch change {
        case .set(let name, let number): names[name] = number
        case .remove(let name): names[name] = nil
        case .rename(let name, let newName, let number):
            names[name] = nil
            names[newName] = number
        }
    }

    // MARK: - Changing files

    mutating func change(_ number: Int, _ change: FileChange) {
        files[number]?.pending.append(change)
        apply(change, to: number, \.visible)
    }

    /// Applies a change in place: packs are large, and a copy for each write would be slow.
    private mutating func apply(
        _ change: FileChange, to number: Int, _ side: WritableKeyPath<File, [UInt8]>
    ) {
        guard var file = files.removeValue(forKey: number) else { return }
        var bytes: [UInt8] = []
        swap(&bytes, &file[keyPath: side])
        DiskImage.apply(change, to: &bytes)
        file[keyPath: side] = bytes
        files[number] = file
    }

    static func apply(_ change: FileChange, to bytes: inout [UInt8]) {
        switch change {
        case .write(let new, let offset):
            resize(&bytes, atLeast: offset + new.count)
            bytes.replaceSubrange(offset..<offset + new.count, with: new)
        case .truncate(let count):
            if bytes.count > count { bytes.removeLast(bytes.count - count) }
            resize(&bytes, atLeast: count)
        }
    }

    private static func resize(_ bytes: inout [UInt8], atLeast count: Int) {
        if bytes.count < count {
            bytes.append(contentsOf: repeatElement(0, count: count - bytes.count))
        }
    }

    // MARK: - Making durable

    mutating func sync(_ number: Int) {
        let pending = files[number]?.pending ?? []
        for change in pending { apply(change, to: number, \.durable) }
        files[number]?.pending = []
    }

    mutating func syncDirectory(_ path: String) -> Bool {
        guard let directory = directories[path] else { return false }
        directories[path]?.durable = directory.visible
        directories[path]?.pending = []
        return true
    }

    /// Flips one bit of a file, like bit rot.
    ///
    /// - Returns: false if there is no such byte.
    package mutating func flipBit(_ path: String, byte: Int, bit: Int) -> Bool {
        guard let number = number(path), let file = files[number], byte < file.visible.count
        else { return false }
        files[number]?.visible[byte] ^= 1 << UInt8(bit)
        if byte < file.durable.count { files[number]?.durable[byte] ^= 1 << UInt8(bit) }
        return true
    }

    /// Removes a file, as a person does.
    package mutating func lose(_ path: String) {
        _ = remove(path)
        _ = syncDirectory(DiskImage.split(path).directory)
    }

    /// Creates a file, as a person does.
    package mutating func put(_ path: String, _ bytes: [UInt8]) {
        guard let number = create(path) else { return }
        change(number, .write(bytes, at: 0))
        sync(number)
        _ = syncDirectory(DiskImage.split(path).directory)
    }

    /// Truncates a file in place, as a person does.
    package mutating func cutShort(_ path: String, to byteCount: Int) {
        guard let number = number(path) else { return }
        change(number, .truncate(byteCount))
        sync(number)
    }
}
