extension Array {
    /// The first element that ends after an address, in an array sorted by end; nil if all end
    /// before it.
    package func first(endingBehind address: UInt64, _ end: (Element) -> UInt64) -> Element? {
        var (low, high) = (0, count)
        while low < high {
            let middle = (low + high) / 2
            if end(self[middle]) <= address { low = middle + 1 } else { high = middle }
        }
        return low < count ? self[low] : nil
    }
}
