// The facade: `import Varve` gives an embedder everything. What does not need Xen is in
// `VarveCore`, which can be imported alone.

@_exported public import VarveCore
@_exported public import XenGuest
