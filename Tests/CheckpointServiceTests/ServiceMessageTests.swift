import Glibc
import Synchronization
import SystemPackage
import Testing
import Varve
import VarveTestSupport

@testable import varve_cli

/// Notifications and entries of the journal, byte for byte.
@Suite struct ServiceMessageTests {
    private func notifier(
        _ receiver: DatagramReceiver, _ more: [String: String] = [:]
    ) -> ServiceNotifier {
        ServiceNotifier { more[$0] ?? ($0 == "NOTIFY_SOCKET" ? receiver.address : nil) }
    }

    @Test(arguments: [false, true])
    func notificationsAreThoseOfTheProtocol(_ isAbstract: Bool) {
        let receiver = DatagramReceiver(isAbstract: isAbstract)
        let notifier = notifier(receiver)
        notifier.ready("waits for domain web")
        #expect(receiver.nextText() == "READY=1\nSTATUS=waits for domain web")
        notifier.say("one\ntwo")
        #expect(receiver.nextText() == "STATUS=\(PrintableText.escape("one\ntwo"))")
        #expect(!PrintableText.escape("one\ntwo").contains("\n"))
        notifier.beat()
        #expect(receiver.next() == Array("WATCHDOG=1".utf8))
        notifier.stopping()
        #expect(receiver.nextText() == "STOPPING=1\nSTATUS=ends after the checkpoint in progress")
    }

    @Test func theWatchdogIsForOneProcess() {
        let receiver = DatagramReceiver()
        let time = ["WATCHDOG_USEC": "30000000"]
        #expect(notifier(receiver).watchdog == nil)
        #expect(notifier(receiver, time).watchdog == .seconds(30))
        let own = time.merging(["WATCHDOG_PID": "\(getpid())"]) { $1 }
        #expect(notifier(receiver, own).watchdog == .seconds(30))
        let other = time.merging(["WATCHDOG_PID": "1"]) { $1 }
        #expect(notifier(receiver, other).watchdog == nil)
        #expect(notifier(receiver, ["WATCHDOG_USEC": "0"]).watchdog == nil)
        #expect(ServiceNotifier(environment: { time[$0] }).watchdog == nil)
    }

    @Test(arguments: [
        "", "@", "/", "relative", "vsock:2:1234", "/" + String(repeating: "x", count: 200),
    ])
    func anAddressThatIsNoneIsIgnored(_ address: String) {
        #expect(DatagramSocket(to: address) == nil)
    }

    @Test func aSocketWithoutReceiverIsNoFailure() {
        let directory = TemporaryDirectory()
        let socket = DatagramSocket(to: directory.path.appending("none").string)
        #expect(socket?.send([1]) == false)
    }

    // MARK: - The journal

    /// A journal whose stream is a file, and its lines on standard error.
    private func journal(
        _ path: String, isStream: Bool = true
    ) throws -> (ServiceJournal, @Sendable () -> [String]) {
        let file = try #require(tmpfile())
        let descriptor = fileno(file)
        let stream = isStream ? ServiceJournal.stream(of: descriptor) : "1:2"
        let lines = Lines()
        let journal = ServiceJournal(
            environment: { $0 == "JOURNAL_STREAM" ? stream : nil }, descriptor: descriptor,
            path: path, print: { lines.add($0) })
        fclose(file)
        return (journal, { lines.all })
    }

    @Test func anEntryHasItsFields() throws {
        let receiver = DatagramReceiver()
        let (journal, lines) = try journal(receiver.address)
        journal.log(.info, "taken", [("VARVE_DOMAIN", "web"), ("VARVE_DIRTY_PAGES", "12")])
        let text =
            "MESSAGE=taken\nPRIORITY=6\nSYSLOG_IDENTIFIER=varve\nVARVE_DOMAIN=web\n"
            + "VARVE_DIRTY_PAGES=12\n"
        #expect(receiver.nextText() == text)
        #expect(lines().isEmpty)
    }

    @Test func aValueWithANewlineIsBinary() throws {
        let receiver = DatagramReceiver()
        let (journal, _) = try journal(receiver.address)
        journal.log(.error, "a=b", [("VARVE_DOMAIN", "w\neb"), ("VARVE_LINEAGE", "")])
        let expected =
            Array("MESSAGE=a=b\nPRIORITY=3\nSYSLOG_IDENTIFIER=varve\nVARVE_DOMAIN\n".utf8)
            + [4, 0, 0, 0, 0, 0, 0, 0] + Array("w\neb\nVARVE_LINEAGE=\n".utf8)
        #expect(receiver.next() == expected)
    }

    @Test func withoutTheJournalsSocketLinesHaveAPriority() throws {
        let directory = TemporaryDirectory()
        let (journal, lines) = try journal(directory.path.appending("none").string)
        journal.log(.warning, "no room")
        #expect(lines() == ["<4>no room"])
    }

    @Test func elsewhereLinesArePlain() throws {
        let receiver = DatagramReceiver()
        let (journal, lines) = try journal(receiver.address, isStream: false)
        journal.log(.warning, "no room", [("VARVE_DOMAIN", "web")])
        #expect(lines() == ["varve: no room"])
    }
}

/// Lines that a service prints.
final class Lines: Sendable {
    private let lines = Mutex<[String]>([])

    func add(_ line: String) { lines.withLock { $0.append(line) } }
    var all: [String] { lines.withLock { $0 } }
}
