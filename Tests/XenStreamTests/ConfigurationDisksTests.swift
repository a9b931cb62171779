import Foundation
import Testing
import VarveTestSupport
import XenStream

/// Disks in the JSON of a configuration.
@Suite struct ConfigurationDisksTests {
    /// As libxl 4.17 writes it (yajl, beautified), with what 4.20 adds.
    private static let text = """
        {
            "c_info": {
                "type": "pvh",
                "name": "web",
                "uuid": "d54dd4f9-2d0c-4d47-8f0a-0ab4f1f4a4d0",
                "run_hotplug_scripts": "True"
            },
            "b_info": {
                "max_vcpus": 1,
                "kernel": "/boot/\\"vmlinuz\\" [x] {y}",
                "type.pvh": {

                }
            },
            "disks": [
                {
                    "pdev_path": "/dev/mapper/a\\\\b \\"x\\"",
                    "vdev": "xvda",
                    "backend": "phy",
                    "format": "raw",
                    "readwrite": 1,
                    "discard_enable": "False"
                },
                {
                    "backend_domname": "storage",
                    "pdev_path": "\\/disks\\/b.qcow2",
                    "vdev": "xvdb",
                    "script": "block-other",
                    "format": "qcow2",
                    "readwrite": 1,
                    "trusted": "True"
                },
                {
                    "vdev": "xvdc",
                    "backend_domid": 3,
                    "removable": 1,
                    "is_cdrom": 1,
                    "specification": "xen"
                }
            ],
            "nics": [
                {
                    "devid": 0,
                    "vdev": "no disk"
                }
            ],
            "on_reboot": "restart"
        }

        """

    private static func parsed(_ configuration: XenConfiguration) throws -> NSDictionary {
        try #require(
            try JSONSerialization.jsonObject(with: Data(configuration.json)) as? NSDictionary)
    }

    private static func disks(_ configuration: XenConfiguration) throws -> [[String: Any]] {
        try #require(try parsed(configuration)["disks"] as? [[String: Any]])
    }

    /// Only what must be another is another.
    @Test func aDiskGetsAnotherPath() throws {
        let old = XenConfiguration(Array(ConfigurationDisksTests.text.utf8))
        #expect(old.diskNames == ["xvda", "xvdb", "xvdc"])
        for (index, name) in old.diskNames.enumerated() {
            var new = old
            try new.setDisk(name, to: "/new/ü.img")
            var expected = try ConfigurationDisksTests.disks(old)
            expected[index]["pdev_path"] = "/new/ü.img"
            expected[index]["format"] = "raw"
            switch name {
            case "xvda": expected[index]["backend"] = "unknown"
            case "xvdb":
                expected[index]["script"] = NSNull()
                expected[index]["backend_domname"] = NSNull()
            default: expected[index]["backend_domid"] = 0
            }
            let whole = try ConfigurationDisksTests.parsed(old).mutableCopy()
            let dictionary = try #require(whole as? NSMutableDictionary)
            dictionary["disks"] = expected
            #expect(try ConfigurationDisksTests.parsed(new) == dictionary, "\(name)")
        }
        var all = old
        for name in old.diskNames { try all.setDisk(name, to: "/new/\(name)") }
        try all.rename("other", uuid: [UInt8](repeating: 7, count: 16))
        #expect(
            try ConfigurationDisksTests.disks(all).map { $0["pdev_path"] as? String }
                == ["/new/xvda", "/new/xvdb", "/new/xvdc"])
        #expect(all.name == "other")
    }

    @Test func whatCannotBeSetIsRefused() throws {
        var configuration = XenConfiguration(Array(ConfigurationDisksTests.text.utf8))
        let json = configuration.json
        for (name, path) in [
            ("xvdd", "/new"), ("no disk", "/new"), ("", "/new"), ("xvda", ""),
            ("xvda", "/a\"b"), ("xvda", "/a\\b"), ("xvda", "/a\nb"),
        ] {
            let error = #expect(throws: XenStreamError.self) {
                try configuration.setDisk(name, to: path)
            }
            #expect(error?.message.contains(path == "/new" ? "--config" : "directory") == true)
        }
        #expect(configuration.json == json)
        try configuration.checkDisks(["xvdc", "xvda"])
        let error = #expect(throws: XenStreamError.self) {
            try configuration.checkDisks(["xvda", "xvdx"])
        }
        #expect(error?.message.contains("'xvdx'") == true)
    }

    @Test(arguments: [
        "", "{", "[]", "{\"disks\": 3}", "{\"disks\": {\"vdev\": \"xvda\"}}",
        "{\"disks\": []}", "{\"disks\": [", "{\"disks\": [{", "{\"disks\": [3, \"xvda\", null]}",
        "{\"disks\": [{\"vdev\": 3}]}", "{\"disks\": [{\"vdev\": \"xvd\\u0061\"}]}",
        "{\"disks\": [{\"vdev\": \"xvda", "{\"disks\": [{\"vdev\": \"xvda\\",
        "{\"disks\"", "{\"other\": [{\"vdev\": \"xvda\"}]}",
    ])
    func withoutTheDiskNothingIsChanged(_ text: String) {
        var configuration = XenConfiguration(Array(text.utf8))
        #expect(configuration.diskNames.isEmpty)
        #expect(throws: XenStreamError.self) { try configuration.setDisk("xvda", to: "/new") }
        #expect(configuration.json == Array(text.utf8))
    }

    /// Damaged and deep text: every call ends, and what it sets is what it then finds.
    @Test func hostileTextEnds() throws {
        var random = TestSeed.generator(4120)
        let sample = Array(ConfigurationDisksTests.text.utf8)
        let marks = Array("{}[]\",:\\ \n0".utf8)
        var count = 0
        for _ in 0..<4000 {
            var bytes = sample
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let index = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: bytes[index] = marks.randomElement(using: &random) ?? 0
                case 1: bytes.remove(at: index)
                default: bytes.removeLast(min(bytes.count - 1, index / 8))
                }
            }
            var configuration = XenConfiguration(bytes)
            let names = configuration.diskNames
            for name in names where (try? configuration.setDisk(name, to: "/new")) != nil {
                #expect(configuration.diskNames == names)
                count += 1
            }
        }
        #expect(count > 1000, "most of it is still a configuration")
        for mark in ["[", "{\"disks\":", "[{\"vdev\":"] {
            let deep = "{\"disks\": [" + String(repeating: mark, count: 100_000)
            #expect(XenConfiguration(Array(deep.utf8)).diskNames.isEmpty)
        }
    }
}
