import Benchmark
import Foundation
import Measuring

// Compares the command line tool with its alternatives, on the same images, in turn. This process
// stays small: a child's peak memory begins with its parent's size.

let benchmarks: @Sendable () -> Void = {
    let images = Array(Settings.images.prefix(Settings.sized(16, quick: 3)))
    guard let first = images.first else {
        print("no images in VARVE_IMAGES: Scripts/guest-images makes them")
        return
    }
    firstImage(first)
    if images.count > 1 { chain(images) }
}

/// Each tool stores one image.
private func takeIn(_ image: String, _ tools: [any ImageTool], _ run: Comparison) throws {
    let byteCount = try size(of: image)
    // Reads the image into the page cache, so that the first tool does not do it for the others.
    _ = try Child.run(["cat", image], output: "/dev/null")
    for tool in tools {
        let result = try tool.takeIn(image)
        run.add(
            tool.name, tool.isSubject ? .subject : .peer, seconds: result.seconds,
            byteCount: byteCount, child: result)
    }
    let read = try Child.run(["cat", image], output: "/dev/null")
    run.add("cat of the image", .limit, seconds: read.seconds, byteCount: byteCount)
    let stream = try Child.run(["zstd", "-1", "-T0", "-q", "-c", image], output: "/dev/null")
    run.add(
        "zstd -1 -T0 of the image", .limit, seconds: stream.seconds, byteCount: byteCount,
        child: stream)
}

private func size(of path: String) throws -> Int {
    try FileManager.default.attributesOfItem(atPath: path)[.size] as? Int ?? 0
}

/// The first image into a new repository, repeatedly.
private func firstImage(_ image: String) {
    compare(
        "import.first", "first image into a new repository", rounds: Settings.sized(5, quick: 1)
    ) { _ in
        Counter()
    } round: { counter, run in
        counter.next += 1
        let place = run.directory + "/round-\(counter.next)"
        try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
        try takeIn(image, try makeTools(in: place), run)
        let disk = try Child.run([
            "dd", "if=\(image)", "of=\(place)/copy", "bs=1M", "conv=fdatasync",
        ])
        run.add(
            "dd of the image with fdatasync", .limit, seconds: disk.seconds,
            byteCount: try size(of: image))
        try FileManager.default.removeItem(atPath: place)
    }
}

private final class Counter {
    var next = 0
}

/// The rest of the chain, image by image; then the bytes, and a restore of the last image.
private func chain(_ images: [String]) {
    compare(
        "import.next", "each next one of \(images.count) images of the same guest", rounds: 1
    ) { run in
        let tools = try makeTools(in: run.directory)
        for tool in tools { _ = try tool.takeIn(images[0]) }
        return tools
    } finish: { tools, run in
        for tool in tools {
            run.note(
                "\(tool.name): bytes of \(images.count) images",
                Double(try Child.byteCount(below: tool.repository)), "bytes")
        }
        let logical = try images.reduce(0) { try $0 + size(of: $1) }
        run.note("bytes of the images", Double(logical), "bytes")
    } round: { tools, run in
        for image in images.dropFirst() { try takeIn(image, tools, run) }
    }

    compare(
        "export.last", "last of the images back, into /dev/null",
        rounds: Settings.sized(5, quick: 1)
    ) { run in
        let tools = try makeTools(in: run.directory)
        for tool in tools {
            for image in images.prefix(4) { _ = try tool.takeIn(image) }
        }
        return tools
    } round: { tools, run in
        for tool in tools {
            let result = try tool.bringBack()
            run.add(
                tool.name, tool.isSubject ? .subject : .peer, seconds: result.seconds,
                byteCount: try size(of: images[0]), child: result)
        }
    }
}
