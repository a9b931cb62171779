package varve

/*
#include <varve.h>

int varveGoProgress(uintptr_t context, struct varve_progress *progress);

// The context is a number of Go's in the place of a pointer, which only C may store there.
static int varve_go_progress(void *context, const struct varve_progress *progress) {
    return varveGoProgress((uintptr_t)context, (struct varve_progress *)progress);
}

static void varve_go_watch(struct varve_call *call, uintptr_t context) {
    call->progress = varve_go_progress;
    call->context = (void *)context;
}
*/
import "C"

import (
	"context"
	"errors"
	"runtime/cgo"
	"sync"
	"unsafe"
)

// A Unit says what a [Progress] counts.
type Unit int

// The units of progress.
const (
	Pages       Unit = C.VARVE_PAGES
	Bytes       Unit = C.VARVE_BYTES
	Packs       Unit = C.VARVE_PACKS
	Checkpoints Unit = C.VARVE_CHECKPOINTS
)

// Progress says how far a call is.
type Progress struct {
	Phase    string // a name, such as "reading"
	Unit     Unit   // of what follows
	Done     uint64
	Total    uint64 // if HasTotal
	HasTotal bool
}

// A ProgressFunc is called from time to time, on any thread, and the call waits for it. An error
// ends the call, which returns that error. It must not call this package.
type ProgressFunc func(Progress) error

// A watch is how a context and a progress function follow one call.
type watch struct {
	place        *C.struct_varve_call // nil if there is nothing to watch
	ctx          context.Context
	cancellation *C.varve_cancellation
	stop         chan struct{}
	stopped      sync.WaitGroup

	handle   cgo.Handle
	progress ProgressFunc
	mutex    sync.Mutex // the library may report on several threads at once
	err      error      // of the progress function
	panicked any        // by the progress function
}

// watch begins to watch a call: end must be called with its result.
func (a *arena) watch(ctx context.Context, progress ProgressFunc) *watch {
	w := &watch{ctx: ctx, progress: progress}
	if ctx.Done() == nil && progress == nil {
		return w
	}
	w.place = (*C.struct_varve_call)(a.allocate(unsafe.Sizeof(*w.place)))
	w.place.size = C.size_t(unsafe.Sizeof(*w.place))
	if progress != nil {
		w.handle = cgo.NewHandle(w)
		C.varve_go_watch(w.place, C.uintptr_t(w.handle))
	}
	if ctx.Done() != nil {
		w.cancellation = newCancellation(a)
		w.place.cancellation = w.cancellation
		w.follow()
	}
	return w
}

func newCancellation(a *arena) *C.varve_cancellation {
	var cancellation *C.varve_cancellation
	err := call(func() C.int { return C.varve_cancellation_create(&cancellation) })
	if err != nil && a.err == nil {
		a.err = err
	}
	return cancellation
}

// follow cancels the call once the context is done.
func (w *watch) follow() {
	if w.ctx.Err() != nil {
		C.varve_cancellation_cancel(w.cancellation)
		return
	}
	w.stop = make(chan struct{})
	w.stopped.Add(1)
	go func() {
		defer w.stopped.Done()
		select {
		case <-w.ctx.Done():
			C.varve_cancellation_cancel(w.cancellation)
		case <-w.stop:
		}
	}()
}

// end frees what the watch has, and returns the error of the call.
func (w *watch) end(err error) error {
	if w.stop != nil {
		close(w.stop)
		w.stopped.Wait()
	}
	if w.cancellation != nil {
		C.varve_cancellation_free(w.cancellation)
	}
	if w.handle != 0 {
		w.handle.Delete()
	}
	if w.panicked != nil {
		panic(w.panicked)
	}
	var failure *Error
	if !errors.As(err, &failure) || failure.Code != Cancelled {
		return err
	}
	if w.err != nil {
		return w.err
	}
	failure.cause = w.ctx.Err()
	return failure
}

// report calls the progress function; a panic is kept, because it may not pass through C.
func (w *watch) report(progress Progress) (result C.int) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.err != nil || w.panicked != nil {
		return 1
	}
	defer func() {
		if w.panicked = recover(); w.panicked != nil {
			result = 1
		}
	}()
	if w.err = w.progress(progress); w.err != nil {
		return 1
	}
	return 0
}
