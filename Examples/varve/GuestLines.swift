import FoundationEssentials
import Varve

/// What `show` prints about a Xen guest.
struct GuestLines {
    /// The parts of xl's configuration that are shown (libxl_domain_config as JSON).
    private struct Configuration: Decodable {
        struct Create: Decodable {
            let type: String?
            let name: String?
            let uuid: String?
        }
        struct Build: Decodable {
            let max_vcpus: Int?
            let max_memkb: Int?
        }
        let c_info: Create?
        let b_info: Build?
    }

    private let guest: XenGuestDescription
    private let configuration: Configuration?

    /// nil if the state is not a Xen guest's.
    init?(_ state: GuestState) {
        guard let guest = XenGuestDescription(state) else { return nil }
        self.guest = guest
        configuration = guest.configurationJSON.flatMap {
            try? JSONDecoder().decode(Configuration.self, from: Data($0))
        }
    }

    private var type: String {
        if let type = configuration?.c_info?.type { return type.uppercased() }
        switch guest.kind {
        case .pv: return "PV"
        case .hvm: return guest.hasDeviceModel ? "HVM" : "HVM or PVH"
        }
    }

    private var xenVersion: String? {
        guest.xenMajor == 0 ? nil : "\(guest.xenMajor).\(guest.xenMinor)"
    }

    /// Names and values.
    var rows: [[String]] {
        let most = configuration?.b_info?.max_vcpus.map { ", at most \($0)" } ?? ""
        var rows = [
            ["guest", type], ["vCPUs", "\(guest.vcpuCount) online" + most],
            ["Xen", xenVersion ?? "unknown: the stream was converted from a legacy one"],
        ]
        if let memory = configuration?.b_info?.max_memkb {
            rows.append(["memory", "at most \(Format.bytes(memory * 1024))"])
        }
        if let name = configuration?.c_info?.name { rows.append(["name", name]) }
        if let uuid = configuration?.c_info?.uuid { rows.append(["UUID", uuid]) }
        return rows
    }

    /// The stable object of `show`.
    var json: JSON {
        .object([
            ("type", .string(type)), ("vcpus", .integer(guest.vcpuCount)),
            ("xenVersion", JSON(xenVersion)), ("name", JSON(configuration?.c_info?.name)),
            ("uuid", JSON(configuration?.c_info?.uuid)),
            ("maxVcpus", configuration?.b_info?.max_vcpus.map { .integer($0) } ?? .null),
            (
                "maxMemoryBytes",
                configuration?.b_info?.max_memkb.map { .integer($0 * 1024) } ?? .null
            ),
        ])
    }
}
