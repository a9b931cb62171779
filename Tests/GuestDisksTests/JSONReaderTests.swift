import Testing
import VarveTestSupport

@testable import GuestDisks

@Suite struct JSONReaderTests {
    private func isWhole(_ text: String) -> Bool {
        var reader = JSONReader(Array(text.utf8))
        return reader.skip() && reader.isAtEnd()
    }

    private func string(_ text: String) -> String? {
        var reader = JSONReader(Array(text.utf8))
        return reader.string()
    }

    @Test func valuesAreRead() {
        for text in [
            "0", "-0", "1.5e-3", "1E+9", "true", "false", "null", "\"\"", "[]", "{}", " [ 1 , 2 ] ",
            "{\"a\":{\"b\":[null,{}]},\"c\":\"d\"}\n",
        ] {
            #expect(isWhole(text), "\(text)")
        }
        #expect(string("\"a\\n\\u00e4\\ud83d\\ude00/\\/\"") == "a\nä😀//")
        #expect(string("\"ä\"") == "ä")
    }

    @Test func whatIsNoJSONIsRefused() {
        for text in [
            "", "nul", "01", "1.", ".5", "+1", "1e", "[1,]", "[,]", "[1 2]", "{\"a\"}", "{\"a\":}",
            "{a:1}", "{\"a\":1,}", "[", "{", "\"", "\"\\x\"", "\"\n\"", "1 1", "'a'",
            String(repeating: "[", count: 17) + String(repeating: "]", count: 17),
            String(repeating: "[", count: 1_000_000),
        ] {
            #expect(!isWhole(text), "\(text.prefix(20))")
        }
        for text in ["\"\\ud83d\"", "\"\\ude00\"", "\"\\ud83d\\u0041\"", "\"\\u00g0\"", "\"\\u00"] {
            #expect(string(text) == nil, "\(text)")
        }
        var invalid = JSONReader([0x22, 0xff, 0x22])
        #expect(invalid.string() == nil)
        for text in ["-1", "1.0", "1e3", "18446744073709551616", "01", "x", ""] {
            var reader = JSONReader(Array(text.utf8))
            #expect(reader.unsigned() == nil, "\(text)")
        }
        var keys = JSONReader(Array("{\"a\":1,\"a\":2}".utf8))
        #expect(!keys.object { reader, _ in reader.skip() })
    }

    @Test func damageNeverTraps() {
        var generator = SeededGenerator(seed: 7)
        let text = Array(
            "{\"changed\": [{\"offset\": 0, \"x\": \"\\u00e4\", \"y\": [1.5, null]}]}".utf8)
        for _ in 0..<5000 {
            var bytes = text
            for _ in 0..<2 {
                bytes[Int.random(in: 0..<bytes.count, using: &generator)] =
                    UInt8.random(in: 0...255, using: &generator)
            }
            var reader = JSONReader(bytes)
            _ = reader.skip() && reader.isAtEnd()
            _ = try? HookAnswer(asked: "", bytes: bytes).changed(100)
        }
    }
}
