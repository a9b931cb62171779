/// `1 place`, `2 places`: a number and what is counted, for sentences.
package func counted(_ count: some BinaryInteger, _ noun: String) -> String {
    "\(count) \(noun)\(count == 1 ? "" : "s")"
}
