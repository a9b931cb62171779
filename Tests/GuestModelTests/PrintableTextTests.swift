import GuestModel
import Testing
import VarveTestSupport

@Suite struct PrintableTextTests {
    @Test func whatIsShownStaysAsItIs() {
        for text in ["", "web", "läbel ¹²³ 日本語 עברית 🙂", "a\\nb", "'\"<>&"] {
            #expect(PrintableText.escape(text) == text)
        }
    }

    @Test func whatIsNotShownIsEscaped() {
        #expect(PrintableText.escape("a\u{1b}[31mb") == "a\\u{1b}[31mb")
        #expect(PrintableText.escape("a\nb\r\tc\u{7f}") == "a\\nb\\r\\tc\\u{7f}")
        #expect(PrintableText.escape("\u{9b}31m") == "\\u{9b}31m")
        #expect(PrintableText.escape("\u{202e}x\u{2066}") == "\\u{202e}x\\u{2066}")
        #expect(PrintableText.escape("\u{2028}\u{2029}\u{feff}\u{200b}").hasPrefix("\\u{2028}"))
        #expect(PrintableText.escape("\u{e0041}\0") == "\\u{e0041}\\u{0}")
        // A carriage return and a line feed are one grapheme cluster.
        #expect(PrintableText.escape("\r\n") == "\\r\\n")
    }

    @Test func nothingWildIsLeftOfAnyText() {
        var random = TestSeed.generator(845)
        for _ in 0..<2000 {
            let scalars = (0..<20).compactMap { _ in
                Unicode.Scalar(UInt32.random(in: 0...0x10ffff, using: &random))
                    ?? Unicode.Scalar(UInt32.random(in: 0..<0x100, using: &random))
            }
            var text = ""
            text.unicodeScalars.append(contentsOf: scalars)
            let escaped = PrintableText.escape(text)
            #expect(!escaped.unicodeScalars.contains(where: PrintableText.isEscaped))
            #expect(PrintableText.escape(escaped) == escaped)
        }
    }
}
