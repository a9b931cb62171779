import Foundation
import Glibc
import Synchronization
import SystemPackage
import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct JournalTests {
    @Test func entriesAreReadBack() throws {
        var record = JournalRecord(.thin)
        record.isMade = true
        record.lines = [["a", "", " ", "%", "ä\n\u{0}x", "%41"], ["b"], [""]]
        #expect(JournalRecord(text: record.text) == record)
        #expect(record.text.utf8.allSatisfy { $0 == 10 || 0x20...0x7e ~= $0 })
        for bytes in [[], [0], [255, 37], Array(0...255)] as [[UInt8]] {
            #expect(JournalRecord.decode(JournalRecord.encode(bytes)) == bytes)
        }
    }

    @Test func whatIsNoEntryIsRefused() {
        let whole = JournalRecord(.thin).text
        #expect(JournalRecord(text: whole) != nil)
        for end in 0..<whole.utf8.count {
            #expect(JournalRecord(text: String(whole.prefix(end))) == nil)
        }
        for wrong in [
            "varve-disks 2 thin made\nend\n", "varve-disks 1 other made\nend\n",
            "varve-disks 1 thin\nend\n", "varve-disks 1 thin made\na%\nend\n",
            "varve-disks 1 thin made\n%+1\nend\n", "varve-disks 1 thin made\n%ff\nend\n",
            whole + "\n",
        ] {
            #expect(JournalRecord(text: wrong) == nil, "\(wrong)")
        }
    }

    @Test func theDirectoryMustBePrivate() throws {
        let home = TemporaryDirectory()
        let path = home.path.appending("state")
        _ = try Journal(path)
        _ = try Journal(path)
        #expect(shell("stat -c %a \(path)").text == "700\n")
        shell("chmod 770 \(path)")
        #expect(throws: (any Error).self) { try Journal(path) }
        shell("rmdir \(path); touch \(path)")
        #expect(throws: (any Error).self) { try Journal(path) }
        #expect(throws: (any Error).self) { try Journal(home.path.appending("a/b")) }
    }

    @Test func anEntryHasOneOwnerAndSurvivesReplacement() throws {
        let home = TemporaryDirectory()
        let journal = try Journal(home.path.appending("state"))
        var record = JournalRecord(.reflink)
        var entry: JournalEntry? = try journal.add("cut-1", record)
        #expect(try journal.take("cut-1") == nil)
        record.isMade = true
        try entry?.replace(record)
        #expect(try journal.take("cut-1") == nil)
        #expect(try journal.read("cut-1") == record)
        entry = nil
        let taken = try #require(try journal.take("cut-1"))
        #expect(taken.record == record)
        #expect(try journal.take("cut-1") == nil)
        try taken.remove()
        #expect(try journal.take("cut-1") == nil)
        #expect(try journal.names().isEmpty)
    }

    /// Its owner replaces the entry between another's opening and locking of it.
    @Test func anEntryThatIsReplacedMeanwhileIsNotTaken() throws {
        let home = TemporaryDirectory()
        let journal = try Journal(home.path.appending("state"))
        let entry = try journal.add("cut-1", JournalRecord(.reflink))
        var other: JournalEntry?
        KernelFault.set { call in
            if call == "flock" {
                KernelFault.set(nil)
                try? entry.replace(JournalRecord(.thin))
            }
            return nil
        }
        other = try journal.take("cut-1")
        KernelFault.set(nil)
        #expect(other == nil && entry.record.kind == .thin)
        #expect(try journal.read("cut-1") == entry.record)
    }

    /// A replaced entry's old file is unlocked before it is closed: its number may be that of a
    /// file which another thread has opened and locked meanwhile.
    @Test func replacingAnEntryReleasesNoOtherLock() throws {
        let home = TemporaryDirectory()
        let taken = Mutex<[String]>([])
        DispatchQueue.concurrentPerform(iterations: 4) { thread in
            do {
                let journal = try Journal(home.path.appending("state-\(thread)"))
                for number in 0..<250 {
                    let name = "cut-\(number)"
                    let entry = try journal.add(name, JournalRecord(.reflink))
                    for _ in 0..<2 {
                        try entry.replace(JournalRecord(.thin))
                        if try journal.take(name) != nil { taken.withLock { $0.append(name) } }
                    }
                    try entry.remove()
                }
            } catch {
                taken.withLock { $0.append("\(error)") }
            }
        }
        #expect(taken.withLock { $0 }.isEmpty)
    }

    @Test func tornEntriesAreRemovedAndDamagedOnesAreListed() throws {
        let home = TemporaryDirectory()
        let journal = try Journal(home.path.appending("state"))
        try write([1], to: journal.directory.appending(".cut-1.new"), at: 0)
        try write([1], to: journal.directory.appending("cut-2"), at: 0)
        try write([1], to: journal.directory.appending("unrelated"), at: 0)
        let disks = try ReflinkDisks(files: [], stateDirectory: journal.directory)
        #expect(try disks.leftovers().map(\.name) == ["cut-2"])
        #expect(try disks.dropLeftovers().isEmpty)
        #expect(try names(in: journal.directory) == ["cut-2", "unrelated"])
        #expect(try disks.standingCut("cut-2") == nil)
    }
}
