package varve

/*
#include <varve.h>
*/
import "C"

import (
	"io"
	"runtime"
	"unsafe"
)

// A Reader reads ranges of one volume of a checkpoint, whose pages are not pruned meanwhile. It
// remains usable when the repository is closed. It has no end, because what does not exist reads as
// zeros: for io.Reader and io.Seeker, make an [io.SectionReader] of the range that you want.
type Reader struct {
	handle *C.varve_reader
}

var _ io.ReaderAt = (*Reader)(nil)
var _ io.Closer = (*Reader)(nil)

// Reader opens a reader of a volume; empty: the memory. Blocks.
func (r *Repository) Reader(id ID, volume string) (*Reader, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	checkpoint, name := packID(id), a.text(volume, true)
	var handle *C.varve_reader
	err := a.call(func() C.int {
		return C.varve_reader_open(r.handle, &checkpoint, name, &handle)
	})
	if err != nil {
		return nil, err
	}
	reader := &Reader{handle}
	runtime.SetFinalizer(reader, func(r *Reader) { C.varve_reader_close(r.handle) })
	return reader, nil
}

// ReadAt reads from an offset; each page is verified. It returns either all bytes or an error, and
// after an error nothing unverified is in bytes. Several goroutines may call it, and are served one
// at a time. Blocks.
func (r *Reader) ReadAt(bytes []byte, offset int64) (int, error) {
	defer runtime.KeepAlive(r)
	if offset < 0 {
		return 0, &Error{Code: InvalidArgument, Message: "the offset is negative"}
	}
	var place unsafe.Pointer
	if len(bytes) > 0 {
		place = unsafe.Pointer(&bytes[0])
	}
	err := call(func() C.int {
		return C.varve_reader_read(r.handle, C.uint64_t(offset), place, C.size_t(len(bytes)))
	})
	if err != nil {
		return 0, err
	}
	return len(bytes), nil
}

// Close closes the reader.
func (r *Reader) Close() error {
	runtime.SetFinalizer(r, nil)
	return call(func() C.int { return C.varve_reader_close(r.handle) })
}
