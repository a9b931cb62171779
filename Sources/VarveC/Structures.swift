import CVarve
import CheckpointIndex
import Glibc
import GuestModel

// Structures of the interface that may grow begin with their size, as their program was compiled:
//
//   smaller than this library's    refused; a later version accepts each size that there was before
//   larger, and the rest is zeros  accepted: a newer program that uses nothing new
//   larger otherwise               refused: it asks for what this library does not know

/// A structure of the interface that begins with its size.
protocol SizedStructure {
    init()
    var size: Int { get set }
}

extension varve_corruption: SizedStructure {}
extension varve_progress: SizedStructure {}
extension varve_call: SizedStructure {}
extension varve_open_options: SizedStructure {}
extension varve_statistics: SizedStructure {}
extension varve_verify_options: SizedStructure {}
extension varve_verify_report: SizedStructure {}
extension varve_prune_options: SizedStructure {}
extension varve_prune_info: SizedStructure {}
extension varve_selection: SizedStructure {}
extension varve_checkpoint: SizedStructure {}
extension varve_volume: SizedStructure {}
extension varve_region: SizedStructure {}
extension varve_dirty: SizedStructure {}
extension varve_callbacks: SizedStructure {}
extension varve_disk: SizedStructure {}
extension varve_disk_callbacks: SizedStructure {}
extension varve_file: SizedStructure {}
extension varve_files: SizedStructure {}
extension varve_session_options: SizedStructure {}
extension varve_capture_input: SizedStructure {}
extension varve_capture_result: SizedStructure {}
extension varve_revert_result: SizedStructure {}
extension varve_restore_options: SizedStructure {}
extension varve_restore_result: SizedStructure {}
extension varve_repair_options: SizedStructure {}
extension varve_repair_info: SizedStructure {}

extension SizedStructure {
    /// No structure will ever be this large: a size that was not set is found.
    private static var sizeMax: Int { 4096 }

    /// Throws unless the size is one that a program may have.
    private static func check(_ size: Int) throws(Failure) {
        let known = MemoryLayout<Self>.stride
        guard size >= known, size <= sizeMax else {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the size of a struct \(Self.self) is \(size), but must be \(known); set it to "
                    + "its sizeof")
        }
    }

    /// What the caller passed; nil for NULL.
    static func read(_ pointer: UnsafePointer<Self>?) throws(Failure) -> Self? {
        guard let pointer else { return nil }
        let bytes = UnsafeRawPointer(pointer)
        let size = bytes.load(as: Int.self)
        try check(size)
        for offset in MemoryLayout<Self>.stride..<size
        where bytes.load(fromByteOffset: offset, as: UInt8.self) != 0 {
            throw Failure(
                VARVE_INVALID_ARGUMENT,
                "the struct \(Self.self) has fields that this version of the library does not "
                    + "know; leave them zero, or use a newer libvarve")
        }
        return pointer.pointee
    }

    /// Calls `body` with each element of an array of the caller's.
    ///
    /// Where the next one begins depends on the size with which the program was compiled.
    ///
    /// - Parameter name: what the elements are, in the plural.
    static func forEach(
        of array: UnsafePointer<Self>, count: Int, _ name: String,
        _ body: (Self) throws(Failure) -> Void
    ) throws(Failure) {
        var place = UnsafeRawPointer(array)
        let stride = place.load(as: Int.self)
        for _ in 0..<count {
            guard let element = try read(place.assumingMemoryBound(to: Self.self)),
                element.size == stride
            else {
                throw Failure(
                    VARVE_INVALID_ARGUMENT, "all \(name) of an array must have the same size")
            }
            try body(element)
            place += stride
        }
    }

    /// Throws unless there is a place for a result, before it is computed.
    ///
    /// - Parameter isOptional: whether NULL is allowed.
    static func checkPlace(
        _ pointer: UnsafeMutablePointer<Self>?, isOptional: Bool = false
    ) throws(Failure) {
        guard let pointer else {
            if isOptional { return }
            throw Failure(
                VARVE_INVALID_ARGUMENT, "the pointer to a struct \(Self.self) is NULL")
        }
        try check(pointer.pointee.size)
    }

    /// Fills a result in, as `fill` does.
    static func write(_ pointer: UnsafeMutablePointer<Self>?, _ fill: (inout Self) -> Void) {
        guard let pointer else { return }
        let size = pointer.pointee.size
        var value = Self()
        fill(&value)
        value.size = size
        pointer.pointee = value
    }
}

/// Throws unless a pointer is there.
func require<T>(_ pointer: UnsafeMutablePointer<T>?, _ name: String) throws(Failure)
    -> UnsafeMutablePointer<T>
{
    guard let pointer else { throw Failure(VARVE_INVALID_ARGUMENT, "\(name) is NULL") }
    return pointer
}

/// A string of the caller's; throws for NULL, and for what is not UTF-8.
func require(string: UnsafePointer<CChar>?, _ name: String) throws(Failure) -> String {
    guard let string else { throw Failure(VARVE_INVALID_ARGUMENT, "\(name) is NULL") }
    guard let text = String(validatingCString: string) else {
        throw Failure(VARVE_INVALID_ARGUMENT, "\(name) is not UTF-8")
    }
    return text
}

/// A string of the caller's; nil for NULL.
func optional(string: UnsafePointer<CChar>?, _ name: String) throws(Failure) -> String? {
    string == nil ? nil : try require(string: string, name)
}

extension varve_id {
    init(_ id: CheckpointID) {
        self.init()
        withUnsafeMutableBytes(of: &self) { $0.copyBytes(from: id.digest.bytes) }
    }
}

extension CheckpointID {
    /// The caller's; throws for NULL.
    init(_ id: UnsafePointer<varve_id>?) throws(Failure) {
        guard let id else { throw Failure(VARVE_INVALID_ARGUMENT, "the id is NULL") }
        self.init(PageDigest(bytes: UnsafeRawBufferPointer(start: id, count: 32)))
    }
}

/// Memory that the caller frees with `varve_free`.
enum CallerMemory {
    /// Copies values; nil if there are none.
    static func copy<T: BitwiseCopyable>(_ values: [T]) throws(Failure) -> UnsafeMutablePointer<T>?
    {
        guard !values.isEmpty else { return nil }
        let byteCount = values.count * MemoryLayout<T>.stride
        guard let copy = malloc(byteCount) else {
            throw Failure(VARVE_NO_MEMORY, "there is no memory for \(byteCount) bytes")
        }
        let typed = copy.bindMemory(to: T.self, capacity: values.count)
        typed.initialize(from: values, count: values.count)
        return typed
    }

    /// Copies text into an array of characters of a structure, and ends it with a zero.
    static func copy<T>(_ text: String, into array: inout T) {
        withUnsafeMutableBytes(of: &array) { bytes in
            let text = text.utf8.prefix(bytes.count - 1)
            bytes.copyBytes(from: text)
            bytes[text.count] = 0
        }
    }
}
