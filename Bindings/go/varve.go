// Package varve takes checkpoints of running guests, through libvarve.
//
// A program that has its guest's memory in its own address space opens a [Session] over it in a
// [Repository], and calls [Session.Capture] with the pages that were written since the last call:
//
//	memory, err := varve.NewMemory(16 << 20)
//	repository, err := varve.Create("store")
//	session, err := repository.Session("machine", []varve.Region{memory.Region(0)}, nil)
//	first, err := session.Capture(ctx, &varve.Input{Dirty: &varve.Dirty{Frames: []uint64{0}}})
//	_, err = session.Revert(ctx, first.ID, nil)
//
// # Memory
//
// A guest's memory must not be memory of Go: the library keeps its address between calls, which
// Go's rules forbid, and writes to it. [NewMemory] maps memory that may be used, a [Region] may
// also be a slice of [syscall.Mmap] or a file that the library maps, and slices that Go allocated
// are refused.
//
// # Calls
//
// All functions and methods may be called by several goroutines at once. Those that may take long
// take a context: when it is done, the call ends at its next step, and errors.Is finds both
// [Cancelled] and the context's error. They block a thread of the system, not only the goroutine.
//
// # Errors
//
// A failure of the library is an [*Error]. Its [Code] is an error too, so that
// errors.Is(err, varve.NotFound) compares it.
//
// # Closing
//
// What is opened has to be closed. A finalizer closes what is dropped, at some time or never.
package varve

/*
#cgo pkg-config: varve
#include <stdlib.h>
#include <string.h>
#include <varve.h>
*/
import "C"

import (
	"encoding/hex"
	"fmt"
	"runtime"
	"strings"
	"unsafe"
)

// Handles of the library are small odd numbers in the shape of pointers. That is safe in variables
// of Go because the types are incomplete in C: cgo declares them as not in Go's heap, so neither
// the garbage collector nor the growing of stacks looks at the values.

// PageSize is the size of a page in bytes. A frame is an address in the guest divided by it.
const PageSize = 4096

// Version returns the version of libvarve at run time.
func Version() string {
	return C.GoString(C.varve_version())
}

// An ID is the identity of a checkpoint: the digest of its manifest.
type ID [32]byte

// ParseID parses 64 hexadecimal digits.
func ParseID(text string) (ID, error) {
	var id ID
	if len(text) != hex.EncodedLen(len(id)) {
		return id, fmt.Errorf("varve: an id has 64 hexadecimal digits, and this has %d", len(text))
	}
	if _, err := hex.Decode(id[:], []byte(text)); err != nil {
		return ID{}, fmt.Errorf("varve: an id has 64 hexadecimal digits: %w", err)
	}
	return id, nil
}

// String returns the id in hexadecimal.
func (id ID) String() string {
	return hex.EncodeToString(id[:])
}

// MarshalText returns the id in hexadecimal.
func (id ID) MarshalText() ([]byte, error) {
	return []byte(id.String()), nil
}

// UnmarshalText parses what MarshalText returns.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err == nil {
		*id = parsed
	}
	return err
}

func unpackID(id C.varve_id) ID {
	return *(*ID)(unsafe.Pointer(&id))
}

func packID(id ID) C.varve_id {
	return *(*C.varve_id)(unsafe.Pointer(&id))
}

// An arena is memory of C for the arguments of one call: structures that C reads may not point to
// memory of Go.
type arena struct {
	blocks []unsafe.Pointer
	err    error // the first failure to pack an argument
}

func (a *arena) free() {
	for _, block := range a.blocks {
		C.free(block)
	}
}

func (a *arena) allocate(byteCount uintptr) unsafe.Pointer {
	block := C.calloc(1, C.size_t(byteCount))
	if block == nil {
		panic("varve: there is no memory for the arguments of a call")
	}
	a.blocks = append(a.blocks, block)
	return block
}

// text packs a string; nil if it is empty and that stands for none.
func (a *arena) text(text string, emptyIsNil bool) *C.char {
	if text == "" && emptyIsNil {
		return nil
	}
	if strings.IndexByte(text, 0) >= 0 {
		a.fail(InvalidArgument, fmt.Sprintf("%q contains a zero byte", text))
		return nil
	}
	place := C.CString(text)
	a.blocks = append(a.blocks, unsafe.Pointer(place))
	return place
}

func (a *arena) id(id *ID) *C.varve_id {
	if id == nil {
		return nil
	}
	place := (*C.varve_id)(a.allocate(unsafe.Sizeof(*id)))
	*place = packID(*id)
	return place
}

func (a *arena) bytes(bytes []byte) unsafe.Pointer {
	if len(bytes) == 0 {
		return nil
	}
	place := a.allocate(uintptr(len(bytes)))
	copy(unsafe.Slice((*byte)(place), len(bytes)), bytes)
	return place
}

func (a *arena) words(words []uint64) *C.uint64_t {
	if len(words) == 0 {
		return nil
	}
	place := a.allocate(uintptr(len(words)) * 8)
	copy(unsafe.Slice((*uint64)(place), len(words)), words)
	return (*C.uint64_t)(place)
}

func (a *arena) fail(code Code, message string) {
	if a.err == nil {
		a.err = &Error{Code: code, Message: message}
	}
}

// call calls the library, unless an argument could not be packed. The error is read by the thread
// that made the call.
func (a *arena) call(function func() C.int) error {
	if a.err != nil {
		return a.err
	}
	return call(function)
}

func call(function func() C.int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if code := function(); code != C.VARVE_OK {
		return lastError(Code(code))
	}
	return nil
}

// takeBytes copies bytes that the library allocated, and frees them.
func takeBytes(bytes unsafe.Pointer, count C.size_t) []byte {
	defer C.varve_free(bytes)
	if count == 0 {
		return nil
	}
	result := make([]byte, int(count))
	copy(result, unsafe.Slice((*byte)(bytes), int(count)))
	return result
}
