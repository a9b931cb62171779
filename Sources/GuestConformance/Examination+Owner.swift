import GuestModel

// One owner at a time.

extension Examination {
    /// Throws unless a claim is refused as required.
    private func expectRefusal(_ what: String, _ body: () throws -> GuestClaim) throws {
        do {
            try body().release()
        } catch let error as GuestError {
            guard error.code == .busy, !error.message.isEmpty else {
                throw Finding("\(what) fails with an error other than busy: \(error)")
            }
            return
        }
        throw Finding("\(what) succeeds")
    }

    func secondOwnerIsRefused() throws {
        let claim = try guest.claim()
        try expectRefusal("a claim while the guest has an owner") { try guest.claim() }
        try expectRefusal("a claim after one was refused") { try guest.claim() }
        claim.release()
    }

    func releaseFreesTheGuest() throws {
        for round in 0..<4 {
            do {
                let claim = try guest.claim()
                if round % 2 == 0 { claim.release() }
                withExtendedLifetime(claim) {}
            } catch {
                throw Finding("a guest that its owner released cannot be claimed: \(error)")
            }
        }
    }

    func oldReleaseFreesNoOther() throws {
        let first = try guest.claim()
        first.release()
        let second = try guest.claim()
        first.release()
        try expectRefusal("a claim after an earlier owner released once more") {
            try guest.claim()
        }
        second.release()
    }

    func anotherObjectIsRefused() throws {
        guard let another = subject.another else {
            throw Skip("no other object can represent this guest, according to the subject")
        }
        let claim = try guest.claim()
        try expectRefusal("a claim by another object of the same guest") { try another().claim() }
        claim.release()
    }
}
