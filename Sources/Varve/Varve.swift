// The facade: everything that an embedder needs comes with `import Varve`. What does not need Xen's
// libraries is in `VarveCore`, which can be imported alone.

@_exported public import VarveCore
@_exported public import XenGuest
