package varve

// #include <varve.h>
import "C"

import "runtime/cgo"

//export varveGoProgress
func varveGoProgress(context C.uintptr_t, progress *C.struct_varve_progress) C.int {
	return cgo.Handle(context).Value().(*watch).report(Progress{
		Phase:    C.GoString(progress.phase),
		Unit:     Unit(progress.unit),
		Done:     uint64(progress.done),
		Total:    uint64(progress.total),
		HasTotal: progress.has_total != 0,
	})
}
