/// What a frame of a page map holds.
package enum PageContent: Hashable, Sendable {
    /// The frame does not exist.
    case absent
    /// It exists and all its bytes are zero.
    case zero
    /// It exists and has this digest.
    case present(PageDigest)
}
