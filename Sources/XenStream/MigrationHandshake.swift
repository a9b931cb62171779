/// The messages that the two ends of `xl migrate` and `xl remus` exchange around the stream.
///
///     receiver -> sender   banner
///     sender -> receiver   xl header, libxl stream
///   after a plain stream only:
///     receiver -> sender   ready
///     sender -> receiver   permission: the receiver owns the guest
///     receiver -> sender   report, then a byte: 0 if it runs, and the sender destroys its own
///   after a byte that is not 0:
///     receiver -> sender   permission: the sender resumes its guest
///
/// The texts are those of tools/xl/xl.h; each but the banner is sent with its NUL.
package enum MigrationHandshake {
    /// The receiver waits for the stream.
    package static let banner = Array(
        "xl migration receiver ready, send binary domain data.\n".utf8)
    /// The receiver has the guest.
    package static let ready = Array("domain received, ready to unpause".utf8) + [0]
    /// The other end may let the guest run.
    package static let permission = Array("domain is yours, you are cleared to unpause".utf8) + [0]
    /// The receiver's outcome follows, in one byte.
    package static let report = Array("my copy unpause results are as follows".utf8) + [0]
}
