package varve

/*
#include <stdlib.h>
#include <varve.h>
*/
import "C"

import (
	"context"
	"errors"
	"runtime"
	"time"
	"unsafe"
)

// LevelStored as a compression level stores pages as they are.
const LevelStored = C.VARVE_LEVEL_STORED

// SessionOptions are the options of a session; zeros are the defaults.
type SessionOptions struct {
	// Parent is the checkpoint that the first one follows, which begins a branch; nil: the
	// lineage's newest.
	Parent                 *ID
	PoolByteCount          uint64 // most memory for pages that are not stored yet; 0: 256 MiB
	OverlappingCapturesMax int    // 0: 4
	WorkerCount            int    // threads that compress and write; 0: processors and one more
	CompressionLevel       int    // of zstd, -7 to 19, or LevelStored; 0: level 1
	// AuditPageCount is how many pages that were not named dirty each capture compares. 0: none.
	AuditPageCount     int
	AcceptsGuestChange bool // the lineage may be another guest's
	OmitsDisks         bool // the guest has disks, which its checkpoints leave out
	// Files are the guest's disks, which are cut and reverted with its memory: varve_guest.h says
	// what they may be. StateDirectory notes what that leaves; it is needed with files.
	Files          []File
	StateDirectory string
	KeepsDiskCut   bool // for the next session, which then need not compare the files as a whole
}

// A File is a raw file on XFS or btrfs that is a disk of the guest.
type File struct {
	Name           string // the volume's
	Path           string
	BlockByteCount int // logical block size: 512 or 4096; 0: 512
}

// A Session captures one guest into one lineage, again and again. Its captures and reverts run one
// at a time. No page of the regions may be written while Capture, Begin or Revert runs: pause the
// guest before, and let it run when they have returned.
type Session struct {
	handle     *C.varve_session
	repository *Repository // so that it is not finalized before the session
	memories   retained
}

// Session begins a session over regions, which must not overlap. The first capture copies every
// page. Options may be nil. Blocks.
func (r *Repository) Session(
	lineage string, regions []Region, options *SessionOptions,
) (*Session, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	place := a.sessionOptions(options)
	name := a.text(lineage, false)
	array, memories := a.regions(regions)
	var handle *C.varve_session
	err := a.call(func() C.int {
		return C.varve_session_open_regions(
			r.handle, name, array, C.size_t(len(regions)), place, &handle)
	})
	if err != nil {
		memories.release()
		return nil, err
	}
	session := &Session{handle, r, memories}
	runtime.SetFinalizer(session, func(s *Session) { _ = s.Close() })
	return session, nil
}

func (a *arena) sessionOptions(options *SessionOptions) *C.struct_varve_session_options {
	if options == nil {
		return nil
	}
	place := (*C.struct_varve_session_options)(a.allocate(C.sizeof_struct_varve_session_options))
	place.size = C.sizeof_struct_varve_session_options
	place.parent = a.id(options.Parent)
	place.pool_byte_count = C.uint64_t(options.PoolByteCount)
	place.overlapping_captures_max = C.int(options.OverlappingCapturesMax)
	place.worker_count = C.int(options.WorkerCount)
	place.compression_level = C.int(options.CompressionLevel)
	place.audit_page_count = C.int(options.AuditPageCount)
	place.accepts_guest_change = truth(options.AcceptsGuestChange)
	place.omits_disks = truth(options.OmitsDisks)
	place.files = a.files(options.Files, options.StateDirectory)
	place.keeps_disk_cut = truth(options.KeepsDiskCut)
	return place
}

func (a *arena) files(files []File, stateDirectory string) *C.struct_varve_files {
	if len(files) == 0 {
		return nil
	}
	place := (*C.struct_varve_files)(a.allocate(C.sizeof_struct_varve_files))
	place.size = C.sizeof_struct_varve_files
	place.files = (*C.struct_varve_file)(
		a.allocate(uintptr(len(files)) * C.sizeof_struct_varve_file))
	place.count = C.size_t(len(files))
	place.state_directory = a.text(stateDirectory, true)
	for index := range files {
		file := &unsafe.Slice(place.files, len(files))[index]
		file.size = C.sizeof_struct_varve_file
		file.name = a.text(files[index].Name, false)
		file.path = a.text(files[index].Path, false)
		file.block_byte_count = C.int(files[index].BlockByteCount)
	}
	return place
}

func truth(value bool) C.int {
	if value {
		return 1
	}
	return 0
}

// Dirty names the pages that may have been written since the last capture or revert: all that are
// in a bitmap or in the list. A page that was written and is not named is missing from the
// checkpoint. Bitmaps and frames are copied.
type Dirty struct {
	// Bitmaps has one for each region, in their order, or none. Bit n of a region is bit n modulo 64
	// of word n divided by 64, as in KVM_GET_DIRTY_LOG.
	Bitmaps [][]uint64
	// Frames are guest addresses divided by PageSize, in any order.
	Frames []uint64
}

func (a *arena) dirty(dirty *Dirty) *C.struct_varve_dirty {
	if dirty == nil {
		return nil
	}
	place := (*C.struct_varve_dirty)(a.allocate(C.sizeof_struct_varve_dirty))
	place.size = C.sizeof_struct_varve_dirty
	if count := len(dirty.Bitmaps); count > 0 {
		place.bitmaps = (*C.struct_varve_bitmap)(
			a.allocate(uintptr(count) * C.sizeof_struct_varve_bitmap))
		place.bitmap_count = C.size_t(count)
		array := unsafe.Slice(place.bitmaps, count)
		for index, words := range dirty.Bitmaps {
			array[index].words = a.words(words)
			array[index].word_count = C.size_t(len(words))
		}
	}
	place.frames = a.words(dirty.Frames)
	place.frame_count = C.size_t(len(dirty.Frames))
	return place
}

// Input is what a capture is given; it is copied.
type Input struct {
	Label    string       // of the checkpoint; empty: none
	Dirty    *Dirty       // nil: unknown, so every page is compared
	State    []byte       // to store with the memory, such as that of the devices
	Progress ProgressFunc // or nil; Begin does not call it
}

// pack packs an input, which may be nil, and returns its progress function.
func (a *arena) input(input *Input) (*C.struct_varve_capture_input, ProgressFunc) {
	if input == nil {
		return nil, nil
	}
	place := (*C.struct_varve_capture_input)(a.allocate(C.sizeof_struct_varve_capture_input))
	place.size = C.sizeof_struct_varve_capture_input
	place.label = a.text(input.Label, true)
	place.dirty = a.dirty(input.Dirty)
	place.state = a.bytes(input.State)
	place.state_byte_count = C.size_t(len(input.State))
	return place, input.Progress
}

// A CaptureResult is a checkpoint that was taken.
type CaptureResult struct {
	ID               ID
	DirtyPageCount   uint64
	CopiedPageCount  uint64
	ChangedPageCount uint64
	StoredPageCount  uint64
	AddedByteCount   uint64
	Downtime         time.Duration // for which the call needed the guest paused
	MissedPageCount  uint64        // that an audit found missing in the dirty log
}

func unpackResult(result *C.struct_varve_capture_result) CaptureResult {
	return CaptureResult{
		ID:               unpackID(result.id),
		DirtyPageCount:   uint64(result.dirty_page_count),
		CopiedPageCount:  uint64(result.copied_page_count),
		ChangedPageCount: uint64(result.changed_page_count),
		StoredPageCount:  uint64(result.stored_page_count),
		AddedByteCount:   uint64(result.added_byte_count),
		Downtime:         time.Duration(result.downtime_nanoseconds),
		MissedPageCount:  uint64(result.missed_page_count),
	}
}

// Capture takes a checkpoint, and returns when it is durable. If it fails, also because the context
// is done, there is no checkpoint, and the next capture takes the pages of this one too. The dirty
// pages are taken over unless the code is [InvalidArgument] or [InvalidHandle]. The input may be
// nil. Blocks.
func (s *Session) Capture(ctx context.Context, input *Input) (CaptureResult, error) {
	defer runtime.KeepAlive(s)
	var a arena
	defer a.free()
	place, progress := a.input(input)
	w := a.watch(ctx, progress)
	var result C.struct_varve_capture_result
	result.size = C.sizeof_struct_varve_capture_result
	err := w.end(a.call(func() C.int {
		return C.varve_session_capture(s.handle, place, w.place, &result)
	}))
	if err != nil {
		return CaptureResult{}, err
	}
	return unpackResult(&result), nil
}

// Begin begins a checkpoint, and returns when the guest may run again; the checkpoint exists once
// [Capture.Wait] returns no error. The context is for this call alone. Otherwise as Capture. Blocks
// until the pages are copied; before that it waits while OverlappingCapturesMax are under way.
func (s *Session) Begin(ctx context.Context, input *Input) (*Capture, error) {
	defer runtime.KeepAlive(s)
	var a arena
	defer a.free()
	place, _ := a.input(input)
	w := a.watch(ctx, nil)
	var handle *C.varve_capture
	err := w.end(a.call(func() C.int {
		return C.varve_session_begin(s.handle, place, w.place, &handle)
	}))
	if err != nil {
		return nil, err
	}
	capture := &Capture{handle}
	runtime.SetFinalizer(capture, func(c *Capture) { C.varve_capture_free(c.handle) })
	return capture, nil
}

// A RevertResult is what a revert did.
type RevertResult struct {
	State             []byte // that the capture was given
	WrittenPageCount  uint64
	ComparedPageCount uint64
}

// Revert reverts the guest to a checkpoint, in place: only pages that differ are written, and all
// are verified before the first is. The next capture follows that checkpoint. If it fails before a
// page was written the guest is unchanged; otherwise the message says so, and reverting again
// completes it. Dirty is as for a capture; nil: unknown. Waits for captures under way. Blocks.
func (s *Session) Revert(ctx context.Context, id ID, dirty *Dirty) (RevertResult, error) {
	defer runtime.KeepAlive(s)
	var a arena
	defer a.free()
	checkpoint, pages := packID(id), a.dirty(dirty)
	w := a.watch(ctx, nil)
	var result C.struct_varve_revert_result
	result.size = C.sizeof_struct_varve_revert_result
	var state unsafe.Pointer
	var count C.size_t
	err := w.end(a.call(func() C.int {
		return C.varve_session_revert(
			s.handle, &checkpoint, pages, w.place, &result, &state, &count)
	}))
	if err != nil {
		return RevertResult{}, err
	}
	return RevertResult{
		State:             takeBytes(state, count),
		WrittenPageCount:  uint64(result.written_page_count),
		ComparedPageCount: uint64(result.compared_page_count),
	}, nil
}

// Parent returns the checkpoint that the next one will follow; nil if there is none.
func (s *Session) Parent() (*ID, error) {
	defer runtime.KeepAlive(s)
	var place C.varve_id
	err := call(func() C.int { return C.varve_session_parent(s.handle, &place) })
	if errors.Is(err, NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id := unpackID(place)
	return &id, nil
}

// Cancel cancels all captures and reverts that have begun; it does not wait for them.
func (s *Session) Cancel() error {
	defer runtime.KeepAlive(s)
	return call(func() C.int { return C.varve_session_cancel(s.handle) })
}

// Close waits for captures under way, which are completed, and closes the session. Blocks.
func (s *Session) Close() error {
	err := call(func() C.int { return C.varve_session_close(s.handle) })
	if !errors.Is(err, InvalidHandle) {
		runtime.SetFinalizer(s, nil)
		s.memories.release()
	}
	return err
}

// A Capture is a capture that has begun.
type Capture struct {
	handle *C.varve_capture
}

// Wait waits until the capture has ended, and returns its result, the same each time. If the
// context is done before, it returns the context's error, and the capture continues. Blocks.
func (c *Capture) Wait(ctx context.Context) (CaptureResult, error) {
	defer runtime.KeepAlive(c)
	if ctx.Done() == nil {
		return c.wait(-1)
	}
	if ctx.Err() != nil {
		result, err := c.wait(0)
		if errors.Is(err, TimedOut) {
			return CaptureResult{}, ctx.Err()
		}
		return result, err
	}
	type ended struct {
		result CaptureResult
		err    error
	}
	// The goroutine outlives a context that is done, until the capture has ended.
	done := make(chan ended, 1)
	go func() {
		result, err := c.wait(-1)
		done <- ended{result, err}
	}()
	select {
	case end := <-done:
		return end.result, end.err
	case <-ctx.Done():
		return CaptureResult{}, ctx.Err()
	}
}

func (c *Capture) wait(timeout C.int64_t) (CaptureResult, error) {
	defer runtime.KeepAlive(c)
	var result C.struct_varve_capture_result
	result.size = C.sizeof_struct_varve_capture_result
	err := call(func() C.int { return C.varve_capture_wait(c.handle, timeout, &result) })
	if err != nil {
		return CaptureResult{}, err
	}
	return unpackResult(&result), nil
}

// Descriptor returns a descriptor that poll(2) finds readable once the capture has ended. It is the
// capture's until Close. Only for polling: do not read from it.
func (c *Capture) Descriptor() (int, error) {
	defer runtime.KeepAlive(c)
	var descriptor C.int
	err := call(func() C.int { return C.varve_capture_descriptor(c.handle, &descriptor) })
	return int(descriptor), err
}

// Cancel cancels the capture; it does not wait. It has no effect once the checkpoint is being
// published.
func (c *Capture) Cancel() error {
	defer runtime.KeepAlive(c)
	return call(func() C.int { return C.varve_capture_cancel(c.handle) })
}

// Close frees the capture, which continues.
func (c *Capture) Close() error {
	runtime.SetFinalizer(c, nil)
	return call(func() C.int { return C.varve_capture_free(c.handle) })
}
