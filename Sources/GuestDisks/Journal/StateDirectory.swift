import Glibc
public import GuestModel
public import SystemPackage

/// The directory that contains the state directories of guests.
public enum StateDirectory {
    /// Creates a directory and those above it with mode 0700, where they are missing.
    ///
    /// Throws `callFailed`. Blocks for the disk.
    public static func create(_ path: FilePath) throws(GuestError) {
        var made = FilePath(root: path.root)
        for component in path.components {
            made.append(component)
            if system_makeDirectory(made) != 0 && errno != EEXIST {
                throw GuestError.call("mkdir", made.printable)
            }
        }
    }
}
