import Foundation
import Glibc
import GuestModel
import Synchronization
import SystemPackage
import VarveTestSupport

@testable import GuestDisks

/// Device-mapper with one thin pool in memory: counts calls and fails them.
///
/// It has thin volumes, snapshots, suspension, the metadata snapshot, and the tools that read it.
final class SimulatedPool: DeviceMapperCalls {
    /// 64 KiB, in blocks of 4 KiB.
    static let blockPages = 16
    static let blockByteCount = 65536

    /// A volume's blocks: which data block each has.
    typealias Mapping = [UInt64: Int]

    struct Device: Sendable {
        var mapped: MappedDevice
        var targets: [MappedTarget]
        /// Writes that were issued while it was suspended.
        var held: [(block: UInt64, bytes: [UInt8])] = []
        /// Writes that are under way.
        var underWay: [(block: UInt64, bytes: [UInt8])] = []
        /// A table that the next resume puts in force.
        var prepared: MappedTarget?
        /// What is written to the device, if it is written to through its node.
        var written: FilePath?
        var isWritable = false
    }

    struct State: Sendable {
        var devices: [String: Device] = [:]
        var nextMinor: UInt32 = 10
        var thin: [UInt32: Mapping] = [:]
        /// The content of each data block.
        var data: [[UInt8]] = []
        var metadataSnapshot: [UInt32: Mapping]?
        var status = "rw discard_passdown queue_if_no_space - 1024"
        var usage = "120/1000 300/1000"
        /// What must not happen.
        var violations: [String] = []
        /// Called before each call with its name and number: how it fails.
        var fault: (@Sendable (String, Int) -> Fault)?
        var callCount = 0
        var calls: [String] = []
        /// Replaces the output and the status of a tool.
        var tool: (@Sendable ([String]) throws(GuestError) -> (String, Int32))?
        var suspendDelay: UInt32 = 0
    }

    enum Fault: Sendable {
        case none
        /// Nothing happens.
        case before(Int32)
        /// It happens, and an error is returned.
        case after(Int32)
    }

    let state = Mutex(State())
    private let home = TemporaryDirectory()

    init(volumes: [String: UInt64] = ["a": 16, "b": 16]) {
        let pool = MappedDevice(
            number: DeviceNumber(major: 253, minor: 1), name: "pool", uuid: "LVM-pool")
        state.withLock { state in
            state.devices["pool"] = Device(
                mapped: pool,
                targets: [
                    MappedTarget(
                        start: 0, length: 1 << 20, type: "thin-pool",
                        parameters: "253:2 253:3 128 0 1 skip_block_zeroing")
                ])
            for (index, name) in volumes.keys.sorted().enumerated() {
                let id = UInt32(index + 1)
                state.thin[id] = [:]
                state.devices[name] = SimulatedPool.thinDevice(
                    name, minor: UInt32(4 + index), blocks: volumes[name] ?? 0, "253:1 \(id)")
            }
        }
    }

    private static func thinDevice(
        _ name: String, minor: UInt32, blocks: UInt64, _ parameters: String
    ) -> Device {
        Device(
            mapped: MappedDevice(number: DeviceNumber(major: 253, minor: minor), name: name),
            targets: [
                MappedTarget(
                    start: 0, length: blocks * 128, type: "thin", parameters: parameters)
            ])
    }

    // MARK: - What a test does and sees

    /// A write of one block: at once, or when the volume runs again.
    func write(_ name: String, _ block: UInt64, _ bytes: [UInt8]) {
        state.withLock { state in
            guard var device = state.devices[name] else { return }
            if device.mapped.isSuspended {
                device.held.append((block, bytes))
                state.devices[name] = device
            } else {
                SimulatedPool.apply(name, block, bytes, &state)
            }
        }
    }

    /// A write of one block that is filled with a byte.
    func write(_ name: String, _ block: UInt64, _ byte: UInt8) {
        write(name, block, SimulatedPool.filled(byte))
    }

    private static func filled(_ byte: UInt8) -> [UInt8] {
        [UInt8](repeating: byte, count: blockByteCount)
    }

    /// A write that is under way until the volume is suspended.
    func begin(_ name: String, _ block: UInt64, _ byte: UInt8) {
        state.withLock { $0.devices[name]?.underWay.append((block, SimulatedPool.filled(byte))) }
    }

    private static func apply(
        _ name: String, _ block: UInt64, _ bytes: [UInt8], _ state: inout State
    ) {
        guard let id = thinID(name, state) else { return }
        state.data.append(bytes)
        state.thin[id]?[block] = state.data.count - 1
    }

    private static func thinID(_ name: String, _ state: State) -> UInt32? {
        state.devices[name]?.targets.first.flatMap { ThinTable($0.parameters) }?.id
    }

    func contents(_ name: String) -> [UInt8] {
        state.withLock { SimulatedPool.contents(name, $0) }
    }

    private static func contents(_ name: String, _ state: State) -> [UInt8] {
        guard let id = thinID(name, state), let length = state.devices[name]?.targets[0].length
        else { return [] }
        let mapping = state.thin[id] ?? [:]
        return (0..<length / 128).flatMap { block in
            mapping[block].map { state.data[$0] } ?? filled(0)
        }
    }

    var suspendedNames: [String] {
        state.withLock { $0.devices.values.filter(\.mapped.isSuspended).map(\.mapped.name) }
    }

    /// Thin IDs besides those of the volumes.
    var snapshotIDs: Set<UInt32> { state.withLock { Set($0.thin.keys.filter { $0 > 100 }) } }

    var cutDevices: [String] {
        state.withLock { $0.devices.keys.filter { $0.hasPrefix("varve-cut-") } }
    }

    /// The thin ID of a volume.
    func thinID(_ name: String) -> UInt32? { state.withLock { SimulatedPool.thinID(name, $0) } }

    var holdsMetadata: Bool { state.withLock { $0.metadataSnapshot != nil } }
    var violations: [String] { state.withLock { $0.violations } }

    /// Volumes with a table that is loaded and not in force.
    var loadedNames: [String] {
        state.withLock { state in
            state.devices.values.filter { $0.prepared != nil }.map(\.mapped.name).sorted()
        }
    }

    func number(_ name: String) throws(GuestError) -> DeviceNumber {
        guard let device = state.withLock({ $0.devices[name] }) else {
            throw SimulatedPool.error("number", ENXIO)
        }
        return device.mapped.number
    }

    /// True if nothing but the volumes is left.
    var isClean: Bool {
        suspendedNames.isEmpty && snapshotIDs.isEmpty && cutDevices.isEmpty && !holdsMetadata
    }

    // MARK: - Calls

    private static func error(_ name: String, _ code: Int32) -> GuestError {
        GuestError(code: .callFailed, message: "\(name) fails with \(code)", errno: code)
    }

    /// Counts a call, fails it if a test wants that, and does it.
    private func call<T: Sendable>(
        _ name: String, _ body: (inout State) throws(GuestError) -> T
    ) throws(GuestError) -> T {
        try state.withLock { (state) throws(GuestError) in
            let fault = state.fault?(name, state.callCount) ?? .none
            state.callCount += 1
            state.calls.append(name)
            switch fault {
            case .none: return try body(&state)
            case .before(let code): throw SimulatedPool.error(name, code)
            case .after(let code):
                _ = try body(&state)
                throw SimulatedPool.error(name, code)
            }
        }
    }

    func number(of path: FilePath) throws(GuestError) -> DeviceNumber? {
        try call("number") { (state) throws(GuestError) in
            let name = path.lastComponent?.string ?? ""
            if name == "plain" { return nil }
            if name == "sda" { return DeviceNumber(major: 8, minor: 0) }
            guard let device = state.devices[name] else {
                throw SimulatedPool.error("stat", ENOENT)
            }
            return device.mapped.number
        }
    }

    func device(_ number: DeviceNumber) throws(GuestError) -> MappedDevice? {
        try call("info") { state in
            state.devices.values.first { $0.mapped.number == number }?.mapped
        }
    }

    func device(named name: String) throws(GuestError) -> MappedDevice? {
        try call("info") { $0.devices[name]?.mapped }
    }

    func table(of number: DeviceNumber) throws(GuestError) -> [MappedTarget] {
        try call("table") { state in
            state.devices.values.first { $0.mapped.number == number }?.targets ?? []
        }
    }

    func status(of number: DeviceNumber) throws(GuestError) -> [MappedTarget] {
        try call("status") { state in
            let root = state.metadataSnapshot == nil ? "-" : "77"
            return [
                MappedTarget(
                    start: 0, length: 1, type: "thin-pool",
                    parameters: state.status == "Fail"
                        ? "Fail" : "1 \(state.usage) \(root) \(state.status)")
            ]
        }
    }

    func sectorByteCount(
        of number: DeviceNumber, _ directory: FilePath
    ) throws(GuestError) -> Int {
        try call("sector") { _ in 512 }
    }

    private final class Request: PreparedRequest {
        let pool: SimulatedPool
        let request: MapperRequest

        init(_ pool: SimulatedPool, _ request: MapperRequest) {
            self.pool = pool
            self.request = request
        }

        func run() throws(GuestError) { try pool.perform(request) }
    }

    func prepare(_ request: MapperRequest) throws(GuestError) -> any PreparedRequest {
        try call("prepare") { _ in Request(self, request) }
    }

    private func perform(_ request: MapperRequest) throws(GuestError) {
        switch request {
        case .suspend(let number):
            try call("suspend") { state in
                for (name, device) in state.devices where device.mapped.number == number {
                    for write in device.underWay {
                        SimulatedPool.apply(name, write.block, write.bytes, &state)
                    }
                    state.devices[name]?.underWay = []
                    state.devices[name]?.mapped.isSuspended = true
                }
                usleep(state.suspendDelay)
            }
        case .resume(let number):
            try call("resume") { state in
                for (name, device) in state.devices where device.mapped.number == number {
                    state.devices[name]?.mapped.isSuspended = false
                    // The kernel suspends a volume that is not, for that.
                    if let prepared = device.prepared {
                        state.devices[name]?.targets = [prepared]
                        state.devices[name]?.prepared = nil
                    }
                    for write in device.held {
                        SimulatedPool.apply(name, write.block, write.bytes, &state)
                    }
                    state.devices[name]?.held = []
                }
            }
        case .load(let number, let target):
            try call("load") { (state) throws(GuestError) in
                guard let table = ThinTable(target.parameters), state.thin[table.id] != nil else {
                    throw SimulatedPool.error("load", ENODATA)
                }
                for (name, device) in state.devices where device.mapped.number == number {
                    state.devices[name]?.prepared = target
                }
            }
        case .clear(let number):
            try call("clear") { state in
                for (name, device) in state.devices where device.mapped.number == number {
                    state.devices[name]?.prepared = nil
                }
            }
        case .message(_, let text):
            let words = text.split(separator: " ")
            try call(String(words[0])) { (state) throws(GuestError) in
                try SimulatedPool.message(words, &state)
            }
        }
    }

    private static func message(_ words: [Substring], _ state: inout State) throws(GuestError) {
        let ids = words.dropFirst().compactMap { UInt32($0) }
        switch words[0] {
        case "create_snap":
            guard state.thin[ids[0]] == nil else { throw error("create_snap", EEXIST) }
            guard let mapping = state.thin[ids[1]] else { throw error("create_snap", ENODATA) }
            let origin = state.devices.values.first { device in
                thinID(device.mapped.name, state) == ids[1]
            }
            // Nobody writes to one that is active to be read.
            if let origin, !origin.mapped.isSuspended,
                !origin.mapped.name.hasPrefix(ThinPart.mark) || origin.isWritable
            {
                state.violations.append("a snapshot of a running volume")
            }
            state.thin[ids[0]] = mapping
        case "create_thin":
            guard state.thin[ids[0]] == nil else { throw error("create_thin", EEXIST) }
            state.thin[ids[0]] = [:]
        case "delete":
            guard state.thin[ids[0]] != nil else { throw error("delete", ENODATA) }
            let isPrepared = state.devices.values.contains { device in
                device.prepared.flatMap { ThinTable($0.parameters) }?.id == ids[0]
            }
            guard !isPrepared, !state.devices.keys.contains(where: { thinID($0, state) == ids[0] })
            else {
                throw error("delete", EBUSY)
            }
            state.thin[ids[0]] = nil
        case "reserve_metadata_snap":
            guard state.metadataSnapshot == nil else { throw error("reserve", EBUSY) }
            state.metadataSnapshot = state.thin
        case "release_metadata_snap":
            guard state.metadataSnapshot != nil else { throw error("release", EINVAL) }
            state.metadataSnapshot = nil
        default: state.violations.append("an unknown message")
        }
    }

    func create(_ device: NewThinDevice) throws(GuestError) -> DeviceNumber {
        try call("create") { (state) throws(GuestError) in
            guard state.devices[device.name] == nil else {
                throw SimulatedPool.error("create", EBUSY)
            }
            guard let table = ThinTable(device.parameters), state.thin[table.id] != nil else {
                throw SimulatedPool.error("create", ENODATA)
            }
            state.nextMinor += 1
            state.devices[device.name] = SimulatedPool.thinDevice(
                device.name, minor: state.nextMinor, blocks: device.length / 128,
                device.parameters)
            state.devices[device.name]?.isWritable = !device.isReadOnly
            return DeviceNumber(major: 253, minor: state.nextMinor)
        }
    }

    func remove(named name: String) throws(GuestError) {
        try call("remove") { state in
            if let path = state.devices[name]?.written {
                SimulatedPool.take(path, name, &state)
            }
            state.devices[name] = nil
        }
    }

    /// What was written to a device through its node.
    private static func take(_ path: FilePath, _ name: String, _ state: inout State) {
        let old = contents(name, state)
        guard let new = try? Array(Data(contentsOf: URL(fileURLWithPath: path.string))) else {
            return
        }
        for block in 0..<old.count / blockByteCount {
            let range = block * blockByteCount..<(block + 1) * blockByteCount
            if old[range] != new[range] { apply(name, UInt64(block), Array(new[range]), &state) }
        }
    }

    func withNode(
        of number: DeviceNumber, in directory: FilePath,
        _ body: (FilePath) throws(GuestError) -> Void
    ) throws(GuestError) {
        let path = home.path.appending("\(UUID().uuidString)")
        let bytes = try call("node") { state in
            let device = state.devices.values.first { $0.mapped.number == number }
            return device.map { SimulatedPool.contents($0.mapped.name, state) } ?? []
        }
        try? Data(bytes).write(to: URL(fileURLWithPath: path.string))
        state.withLock { state in
            for (name, device) in state.devices
            where device.mapped.number == number && device.isWritable {
                state.devices[name]?.written = path
            }
        }
        try body(path)
    }

    func run(
        _ command: [String], within deadline: Duration,
        _ take: (UnsafeRawBufferPointer) throws(GuestError) -> Void
    ) throws(GuestError) -> (status: Int32, complaint: String) {
        let (text, status) = try call("run") { (state) throws(GuestError) in
            guard let tool = state.tool else { return SimulatedPool.answer(command, state) }
            return try tool(command)
        }
        // In small pieces, as from a pipe.
        let bytes = Array(text.utf8)
        for start in stride(from: 0, to: bytes.count, by: 7) {
            var failure: GuestError?
            bytes[start..<min(bytes.count, start + 7)].withUnsafeBytes { piece in
                do throws(GuestError) { try take(piece) } catch { failure = error }
            }
            if let failure { throw failure }
        }
        return (status, status == 0 ? "" : "it does not work")
    }

    /// As the tools of version 0.9 print it.
    private static func answer(_ command: [String], _ state: State) -> (String, Int32) {
        guard let metadata = state.metadataSnapshot else { return ("", 1) }
        let ids = command.compactMap { UInt32($0) }
        var text =
            "<superblock uuid=\"\" time=\"3\" transaction=\"5\" data_block_size=\"128\" "
            + "nr_data_blocks=\"1000\">\n"
        if command.contains("thin_delta") {
            guard let left = metadata[ids[0]], let right = metadata[ids[1]] else { return ("", 1) }
            text += "  <diff left=\"\(ids[0])\" right=\"\(ids[1])\">\n"
            for block in Set(left.keys).union(right.keys).sorted() {
                let word =
                    left[block] == nil
                    ? "right_only"
                    : right[block] == nil
                        ? "left_only" : left[block] == right[block] ? "same" : "different"
                text += "    <\(word) begin=\"\(block)\" length=\"1\"/>\n"
            }
            text += "  </diff>\n"
        } else if let mapping = metadata[ids[0]] {
            text += "  <device dev_id=\"\(ids[0])\" mapped_blocks=\"\(mapping.count)\">\n"
            for (block, data) in mapping.sorted(by: { $0.key < $1.key }) {
                text += "    <single_mapping origin_block=\"\(block)\" data_block=\"\(data)\" "
                text += "time=\"0\"/>\n"
            }
            text += "  </device>\n"
        }
        return (text + "</superblock>\n", 0)
    }
}
