import Varve

/// What `/etc/varve/NAME.conf` says.
///
/// The keys are in `Key`; `systemd/varve.conf.example` has all of them.
struct ServiceConfiguration: Equatable {
    /// The name of the domain; by default the service's.
    var domain: String
    /// The repository, an absolute path.
    var store = ""
    /// The lineage; by default the domain's name.
    var lineage: String
    /// The time from one checkpoint to the next.
    var interval = Duration.zero
    /// Which checkpoints are kept; all, if it is empty.
    var retention = RetentionPolicy()
    /// Whether the domain's disks are in the checkpoints.
    var takesDisks = true
    /// The command that cuts disks, and its arguments; empty for none.
    var diskCommand: [String] = []
    /// The directory that notes cuts; nil for the default.
    var diskState: String?
    /// How long to wait until no request to a disk is under way.
    var settle = Duration.zero
    /// Whether the last cut is kept when the service ends.
    var keepsCut = false
    /// How many pages of those that the log calls unwritten are checked each time.
    var auditPageCount = 0
    /// How the domain is paused.
    var pauseMode = XenPauseMode.suspend
    /// How long the guest may take to suspend itself.
    var suspendTimeout = Duration.seconds(60)
    /// Whether the lineage continues with a domain that has another UUID.
    ///
    /// The name in the file says which guest is meant, and `xl create` gives a domain another UUID
    /// each time, unless its configuration has one.
    var acceptsGuestChange = true
    /// The file of metrics, an absolute path that ends in `.prom`; nil for none.
    var metrics: String?
    /// How long to wait while another process writes to the repository.
    var wait = Duration.seconds(60)

    init(domain: String) {
        self.domain = domain
        lineage = domain
    }

    /// The keys of the file.
    enum Key: String, CaseIterable {
        case domain
        case store
        case lineage
        case interval
        case keepLast = "keep-last"
        case keepWithin = "keep-within"
        case keepSecondly = "keep-secondly"
        case keepMinutely = "keep-minutely"
        case keepHourly = "keep-hourly"
        case keepDaily = "keep-daily"
        case keepWeekly = "keep-weekly"
        case keepMonthly = "keep-monthly"
        case disks
        case diskCommand = "disk-command"
        case diskState = "disk-state"
        case settle
        case keepCut = "keep-cut"
        case audit
        case pause
        case suspendTimeout = "suspend-timeout"
        case acceptGuestChange = "accept-guest-change"
        case metrics
        case wait
    }
}

extension ServiceConfiguration {
    /// Reads the text of a configuration file.
    ///
    /// A line is empty, a comment, or `key = value`. A comment begins with a '#' at the beginning
    /// of a line or after white space, and ends with the line.
    ///
    /// - Parameters:
    ///   - file: its name, for messages.
    ///   - name: the service's name.
    /// - Throws: one sentence with file and line, as wrong usage.
    init(_ text: String, file: String, name: String) throws {
        self.init(domain: name)
        var lines: [Key: Int] = [:]
        let source = text.split(separator: "\n", omittingEmptySubsequences: false)
        for (index, line) in source.enumerated() {
            func refuse(_ message: String) -> ToolError {
                ToolError("\(file):\(index + 1): \(message)", .usage)
            }
            guard let (word, value) = try ServiceConfiguration.entry(line, refuse) else { continue }
            guard let key = Key(rawValue: word) else {
                let known = Key.allCases.map(\.rawValue).joined(separator: ", ")
                throw refuse("there is no key '\(word)'; the keys are \(known)")
            }
            if let first = lines[key] {
                throw refuse("'\(word)' is set a second time; line \(first) has it already")
            }
            lines[key] = index + 1
            do throws(InvalidValue) {
                try set(key, to: value)
            } catch {
                throw refuse("\(word) = \(value): \(error.message)")
            }
        }
        for key in [Key.store, .interval] where lines[key] == nil {
            throw ToolError("\(file): '\(key.rawValue)' is missing; add a line for it", .usage)
        }
        if lines[.lineage] == nil {
            do {
                lineage = try LineageName(domain).text
            } catch {
                throw ToolError(
                    "\(file): the domain's name cannot be that of a lineage: "
                        + "\(ToolError(error).message); set 'lineage'", .usage)
            }
        }
    }

    /// The key and the value of a line; nil if it has none.
    private static func entry(
        _ line: Substring, _ refuse: (String) -> ToolError
    ) throws -> (String, String)? {
        var end = line.startIndex
        var isSpace = true
        while end < line.endIndex, !(line[end] == "#" && isSpace) {
            isSpace = line[end].isWhitespace
            end = line.index(after: end)
        }
        let content = line[..<end].trimmed
        guard !content.isEmpty else { return nil }
        guard let equals = content.firstIndex(of: "=") else {
            throw refuse("'\(content)' is not of the form 'key = value'")
        }
        let key = content[..<equals].trimmed
        let value = content[content.index(after: equals)...].trimmed
        guard !value.isEmpty else {
            throw refuse("'\(key)' has no value; give one, or leave the line out")
        }
        return (String(key), String(value))
    }

    /// Why a value is refused.
    private struct InvalidValue: Error {
        let message: String
    }

    private mutating func set(_ key: Key, to text: String) throws(InvalidValue) {
        switch key {
        case .domain: domain = text
        case .store: store = try ServiceConfiguration.path(text)
        case .lineage:
            do throws(RepositoryError) {
                lineage = try LineageName(text).text
            } catch {
                throw InvalidValue(message: error.message)
            }
        case .interval: interval = try ServiceConfiguration.time(text, atLeast: .milliseconds(1))
        case .keepLast: retention.keepLast = try ServiceConfiguration.count(text)
        case .keepWithin:
            guard let span = RetentionRules.span(text) else {
                throw InvalidValue(message: "not a time such as 30s, 10m, 2h, 7d or 4w")
            }
            retention.keepWithin = span
        case .keepSecondly: retention.keepSecondly = try ServiceConfiguration.count(text)
        case .keepMinutely: retention.keepMinutely = try ServiceConfiguration.count(text)
        case .keepHourly: retention.keepHourly = try ServiceConfiguration.count(text)
        case .keepDaily: retention.keepDaily = try ServiceConfiguration.count(text)
        case .keepWeekly: retention.keepWeekly = try ServiceConfiguration.count(text)
        case .keepMonthly: retention.keepMonthly = try ServiceConfiguration.count(text)
        case .disks:
            takesDisks = try ServiceConfiguration.choice(text, ["all": true, "none": false])
        case .diskCommand: diskCommand = text.split(separator: " ").map(String.init)
        case .diskState: diskState = try ServiceConfiguration.path(text)
        case .settle: settle = try ServiceConfiguration.time(text)
        case .keepCut: keepsCut = try ServiceConfiguration.choice(text, ["yes": true, "no": false])
        case .audit: auditPageCount = try ServiceConfiguration.count(text, atMost: 1 << 20)
        case .pause:
            pauseMode = try ServiceConfiguration.choice(
                text, ["suspend": XenPauseMode.suspend, "pause": .pause])
        case .suspendTimeout:
            suspendTimeout = try ServiceConfiguration.time(text, atMost: .seconds(86_400))
        case .acceptGuestChange:
            acceptsGuestChange = try ServiceConfiguration.choice(text, ["yes": true, "no": false])
        case .metrics:
            // node_exporter reads no other file of the directory.
            guard text.hasSuffix(".prom") else {
                throw InvalidValue(message: "the name must end in '.prom'")
            }
            metrics = try ServiceConfiguration.path(text)
        case .wait: wait = try ServiceConfiguration.time(text)
        }
    }

    private static func path(_ text: String) throws(InvalidValue) -> String {
        guard text.hasPrefix("/") else {
            throw InvalidValue(message: "not an absolute path, and a service has no directory")
        }
        return text
    }

    private static func time(
        _ text: String, atLeast least: Duration = .zero, atMost most: Duration = .seconds(1e9)
    ) throws(InvalidValue) -> Duration {
        guard let time = TimeSpan(argument: text)?.duration else {
            throw InvalidValue(message: "not a time such as 200ms, 5s, 10m or 2h")
        }
        guard time >= least else { throw InvalidValue(message: "too short") }
        guard time <= most else { throw InvalidValue(message: "too long") }
        return time
    }

    private static func count(
        _ text: String, atMost most: Int = .max
    ) throws(InvalidValue) -> Int {
        guard let count = Int(text), (0...most).contains(count) else {
            throw InvalidValue(
                message: most == .max ? "not a number from 0" : "not a number from 0 to \(most)")
        }
        return count
    }

    private static func choice<T>(
        _ text: String, _ values: KeyValuePairs<String, T>
    ) throws(InvalidValue) -> T {
        guard let found = values.first(where: { $0.key == text }) else {
            throw InvalidValue(
                message: "neither " + values.map { "'\($0.key)'" }.joined(separator: " nor "))
        }
        return found.value
    }
}

extension Substring {
    /// Without white space at either end.
    fileprivate var trimmed: Substring {
        var text = self[...]
        while text.first?.isWhitespace == true { text = text.dropFirst() }
        while text.last?.isWhitespace == true { text = text.dropLast() }
        return text
    }
}
