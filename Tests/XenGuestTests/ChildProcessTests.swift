import Glibc
import GuestModel
import Testing

@testable import XenGuest

/// Child processes.
@Suite struct ChildProcessTests {
    private func shell(_ script: String) -> [String] { ["/bin/sh", "-c", script] }

    private func write(_ child: ChildProcess, _ bytes: [UInt8]) throws {
        let error = bytes.withUnsafeBytes { bytes -> GuestError? in
            do throws(GuestError) { try child.write(bytes) } catch { return error }
            return nil
        }
        if let error { throw error }
    }

    /// A SIGPIPE would end the tests.
    @Test func writingToADeadChildIsAnErrorAndNoSignal() throws {
        let child = try ChildProcess(shell("exec 0<&-; exit 3"))
        while child.isRunning { usleep(1000) }
        // Programs started by other tests have its pipe open until their own exec.
        let error = failure {
            for _ in 0..<1000 {
                try write(child, [1, 2, 3])
                usleep(1000)
            }
        }
        #expect(error?.code == .callFailed && error?.errno == EPIPE)
        child.write(7)
        #expect(child.wait() == 3)
        #expect(child.wait() == 3, "asked again")
        var pending = sigset_t()
        sigpending(&pending)
        #expect(sigismember(&pending, SIGPIPE) == 0)
    }

    @Test func anExitStatusIsTheChildsAndASignalIsToldFromIt() throws {
        #expect(try ChildProcess(shell("exit 0")).wait() == 0)
        #expect(try ChildProcess(shell("exit 200")).wait() == 200)
        #expect(try ChildProcess(shell("kill -KILL $$")).wait() == 128 + 9)
    }

    @Test func aChildReadsAllThatIsWrittenUntilItsEnd() throws {
        let child = try ChildProcess(["wc", "-c"], collectsOutput: true)
        try write(child, [UInt8](repeating: 9, count: 300_000))
        child.closeInput()
        #expect(child.wait() == 0)
        #expect(child.collectedLines.first?.contains("300000") == true)
    }

    @Test func theLastLinesOfBothOutputsAreCollected() throws {
        let child = try ChildProcess(
            shell("echo one; echo two >&2; echo three"), collectsOutput: true)
        #expect(child.wait() == 0)
        #expect(child.collectedLines == ["one", "two", "three"])
        let long = try ChildProcess(shell("seq 1 5000"), collectsOutput: true)
        #expect(long.wait() == 0)
        #expect(long.collectedLines.last == "5000")
        #expect(long.collectedLines.joined(separator: "\n").utf8.count < 4096)
        let silent = try ChildProcess(shell("exit 0"))
        #expect(silent.wait() == 0 && silent.collectedLines.isEmpty)
    }

    @Test func bytesOfItsOutputComeOneByOne() throws {
        let child = try ChildProcess(shell("printf ab"), readsOutput: true)
        #expect(child.readByte() == 0x61 && child.readByte() == 0x62)
        #expect(child.readByte() == nil)
        #expect(child.wait() == 0)
    }

    @Test func aProgramThatDoesNotExistIsNamed() {
        let error = failure { _ = try ChildProcess(["/nonexistent/program"]) }
        #expect(error?.errno == ENOENT)
        #expect(error?.message.contains("/nonexistent/program") == true)
    }

    /// Descriptors left open by failed starts would accumulate.
    @Test func aProgramThatDoesNotStartLeavesNoDescriptor() {
        func highest() -> Int32 {
            let descriptor = dup(2)
            close(descriptor)
            return descriptor
        }
        let before = highest()
        for _ in 0..<200 {
            _ = failure { _ = try ChildProcess(["/nonexistent/program"], collectsOutput: true) }
        }
        // Other tests open files in parallel.
        #expect(highest() < before + 150)
    }

    /// A child that is released, before or after its end, leaves no zombie.
    @Test(arguments: ["read -r line", "exit 0"])
    func aChildThatNobodyWaitsForIsReaped(ending: String) throws {
        var child: ChildProcess? = try ChildProcess(
            shell("echo $$; echo; \(ending)"), collectsOutput: true)
        var lines: [String] = []
        while lines.isEmpty {
            lines = child?.collectedLines ?? []
            usleep(1000)
        }
        let identifier = try #require(pid_t(lines[0]))
        if ending == "exit 0" { usleep(50_000) }
        child = nil
        var tries = 0
        while kill(identifier, 0) == 0, tries < 10_000 {
            usleep(1000)
            tries += 1
        }
        #expect(kill(identifier, 0) == -1 && errno == ESRCH, "its entry is gone")
    }

    @Test func aChildMayHaveASessionOfItsOwn() throws {
        let script = "read -r stat < /proc/$$/stat; set -- $stat; [ $6 = $$ ]"
        #expect(try ChildProcess(shell(script), inNewSession: true).wait() == 0)
        #expect(try ChildProcess(shell(script)).wait() == 1)
    }
}
