import Glibc
import SystemPackage
import Testing
import Varve
import VarveTestSupport

@testable import varve_cli

/// What a configuration file may say, and each refusal.
@Suite struct ServiceConfigurationTests {
    private static let least = "store = /var/lib/varve/web\ninterval = 5s\n"

    private func read(_ text: String) throws -> ServiceConfiguration {
        try ServiceConfiguration(text, file: "web.conf", name: "web")
    }

    /// The sentence of a refusal.
    private func refusal(_ text: String) throws -> String {
        let error = #expect(throws: ToolError.self) { try read(text) }
        #expect(error?.kind == .usage)
        return error?.message ?? ""
    }

    @Test func theLeastIsAStoreAndAnInterval() throws {
        let found = try read(ServiceConfigurationTests.least)
        var expected = ServiceConfiguration(domain: "web")
        expected.store = "/var/lib/varve/web"
        expected.interval = .seconds(5)
        #expect(found == expected)
        #expect(found.lineage == "web" && found.retention.isEmpty && found.wait == .seconds(60))
    }

    @Test func everyKeyHasItsPlace() throws {
        let found = try read(
            """
            # The web server's.
            domain = web-1   # as xl calls it
            store=/srv/a#b
              interval =  200ms

            lineage = main
            keep-last = 100
            keep-within = 2h
            keep-secondly = 1
            keep-minutely = 2
            keep-hourly = 24
            keep-daily = 7
            keep-weekly = 4
            keep-monthly = 12
            disks = none
            disk-command = /usr/lib/hook  --pool a=b
            disk-state = /srv/cuts
            settle = 50ms
            keep-cut = yes
            audit = 64
            pause = pause
            suspend-timeout = 10s
            accept-guest-change = no
            metrics = /srv/web.prom
            wait = 1m
            """)
        #expect(found.domain == "web-1" && found.store == "/srv/a#b")
        #expect(found.interval == .milliseconds(200) && found.lineage == "main")
        #expect(
            found.retention
                == RetentionPolicy(
                    keepLast: 100, keepWithin: .seconds(7200), keepSecondly: 1, keepMinutely: 2,
                    keepHourly: 24, keepDaily: 7, keepWeekly: 4, keepMonthly: 12))
        #expect(!found.takesDisks && found.diskState == "/srv/cuts")
        #expect(found.diskCommand == ["/usr/lib/hook", "--pool", "a=b"])
        #expect(found.settle == .milliseconds(50) && found.keepsCut)
        #expect(found.auditPageCount == 64 && found.pauseMode == .pause)
        #expect(found.suspendTimeout == .seconds(10) && !found.acceptsGuestChange)
        #expect(found.metrics == "/srv/web.prom" && found.wait == .seconds(60))
        let options = found.options { _ in }
        #expect(options.domain.pauseMode == .pause)
        #expect(options.domain.suspendTimeout == .seconds(10))
        #expect(options.capture.retention?.policy == found.retention)
        #expect(options.capture.auditPageCount == 64 && options.capture.keepsDiskCut)
        #expect(!options.capture.acceptsGuestChange)
        #expect(options.disks.command == found.diskCommand)
        #expect(options.disks.stateDirectory == "/srv/cuts")
        #expect(options.disks.settleTime == .milliseconds(50))
    }

    /// The domain's name is the lineage's unless the file says otherwise, in either order.
    @Test func theLineageIsTheDomains() throws {
        let least = ServiceConfigurationTests.least
        #expect(try read(least + "domain = db\n").lineage == "db")
        #expect(try read("lineage = old\n" + least + "domain = db\n").lineage == "old")
    }

    @Test(arguments: [
        ("intervall = 5s", "there is no key 'intervall'; the keys are domain, store, lineage"),
        ("store /srv", "'store /srv' is not of the form 'key = value'"),
        ("audit =", "'audit' has no value"),
        ("audit = # none", "'audit' has no value"),
        ("audit = -1", "audit = -1: not a number from 0 to 1048576"),
        ("audit = 1048577", "not a number from 0 to 1048576"),
        ("lineage = a b\u{301}", "lineage = a b\u{301}: "),
        ("keep-last = many", "keep-last = many: not a number from 0"),
        ("keep-within = 200ms", "not a time such as 30s"),
        ("disks = some", "disks = some: neither 'all' nor 'none'"),
        ("disk-state = cuts", "not an absolute path"),
        ("settle = 5", "not a time such as 200ms"),
        ("keep-cut = true", "neither 'yes' nor 'no'"),
        ("pause = stop", "neither 'suspend' nor 'pause'"),
        ("suspend-timeout = 25h", "too long"),
        ("accept-guest-change = 1", "neither 'yes' nor 'no'"),
        ("metrics = /srv/web.txt", "the name must end in '.prom'"),
        ("metrics = web.prom", "not an absolute path"),
        ("wait = soon", "not a time such as 200ms"),
        ("interval = 5s", "'interval' is set a second time; line 2 has it already"),
    ])
    func whatIsWrongIsNamed(_ line: String, _ reason: String) throws {
        let message = try refusal(ServiceConfigurationTests.least + line + "\n")
        #expect(message.hasPrefix("web.conf:3: "), "\(message)")
        #expect(message.contains(reason), "\(message)")
    }

    @Test func intervalsAreNotZero() throws {
        #expect(
            try refusal("store = /a\ninterval = 0s") == "web.conf:2: interval = 0s: too short")
    }

    @Test func whatIsMissingIsNamed() throws {
        #expect(try refusal("interval = 5s").contains("web.conf: 'store' is missing"))
        #expect(try refusal("store = /a").contains("web.conf: 'interval' is missing"))
    }

    // MARK: - The file

    @Test func aFileIsReadIfNoOtherUserMayWriteIt() throws {
        let directory = TemporaryDirectory()
        let path = directory.path.appending("web.conf").string
        func write(_ text: String, mode: mode_t) throws {
            let file = try #require(fopen(path, "w"))
            fputs(text, file)
            fclose(file)
            chmod(path, mode)
        }
        func message() -> String {
            let error = #expect(throws: ToolError.self) {
                try ServiceConfiguration.read(path, name: "web")
            }
            #expect(error?.kind == .usage)
            return error?.message ?? ""
        }
        #expect(message() == "\(path) cannot be read: No such file or directory")
        try write(ServiceConfigurationTests.least, mode: 0o644)
        #expect(try ServiceConfiguration.read(path, name: "web").store == "/var/lib/varve/web")
        for mode: mode_t in [0o664, 0o646] {
            chmod(path, mode)
            #expect(message().contains("may be written by users other than root"))
        }
        if geteuid() == 0 {
            chmod(path, 0o644)
            #expect(chown(path, 65534, 0) == 0)
            #expect(message() == "\(path) belongs to user 65534; give it to root (chown root)")
            #expect(chown(path, 0, 0) == 0)
        }
        try write(String(repeating: "#", count: 65537), mode: 0o644)
        #expect(message() == "\(path) is larger than 64 KiB")
        try write("store = /a\nlineage = \u{e9}\n", mode: 0o644)
        let file = try #require(fopen(path, "w"))
        for byte: Int32 in [0x23, 0xff, 0x0a] { fputc(byte, file) }
        fclose(file)
        #expect(message() == "\(path) is not UTF-8 text")
        unlink(path)
        #expect(mkfifo(path, 0o644) == 0)
        #expect(message() == "\(path) is not a file; name a configuration file")
    }

    /// The example in the folder of the units has every key, and its values are accepted.
    @Test func theExampleHasEveryKey() throws {
        let example =
            #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
            + "/Examples/varve/systemd/varve.conf.example"
        let file = try #require(fopen(example, "r"))
        defer { fclose(file) }
        var bytes = [UInt8](repeating: 0, count: 1 << 16)
        let text = String(decoding: bytes[..<fread(&bytes, 1, bytes.count, file)], as: UTF8.self)
        _ = try read(text)
        // What is commented out is accepted too.
        let all = text.split(separator: "\n").map { line in
            line.hasPrefix("#") && line.contains(" = ") && !line.hasPrefix("# ")
                ? line.dropFirst() : line
        }.joined(separator: "\n")
        _ = try read(all)
        for key in ServiceConfiguration.Key.allCases {
            #expect(
                all.split(separator: "\n").contains { $0.hasPrefix(key.rawValue + " = ") },
                "\(key.rawValue)")
        }
    }
}
