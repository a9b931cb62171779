package import GuestModel

/// A node of xenstore by which a guest learns that it went back: `data/varve/generation` of its own
/// directory, which it may read and watch.
///
/// It gets another random value of 128 bits, as 32 hexadecimal digits, whenever the guest continues
/// from a checkpoint: in a revert before it runs, and after a restore as it begins to run. A
/// checkpoint that is taken does not change it. A guest that reads it, and watches it, knows when
/// to reseed what must not repeat, and to renew leases.
package enum GuestGeneration {
    package static func path(of domain: UInt32) -> String {
        "/local/domain/\(domain)/data/varve/generation"
    }

    package static func renew(
        of domain: UInt32, _ calls: any XenCalls
    ) throws(GuestError) {
        var generator = SystemRandomNumberGenerator()
        var digits = ""
        for _ in 0..<2 {
            let part = String(generator.next() as UInt64, radix: 16)
            digits += String(repeating: "0", count: 16 - part.count) + part
        }
        try calls.write(path(of: domain), digits)
    }
}
