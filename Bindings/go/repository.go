package varve

/*
#include <stdlib.h>
#include <varve.h>
*/
import "C"

import (
	"context"
	"os"
	"runtime"
	"time"
	"unsafe"
)

// A Repository is a directory of checkpoints.
type Repository struct {
	handle *C.varve_repository
}

func newRepository(handle *C.varve_repository) *Repository {
	repository := &Repository{handle}
	runtime.SetFinalizer(repository, func(r *Repository) { C.varve_repository_close(r.handle) })
	return repository
}

// Create creates a repository in a directory that is empty or does not exist, and opens it for
// writing. Blocks for the disk.
func Create(path string) (*Repository, error) {
	return create(path, false, func(path *C.char, place **C.varve_repository) C.int {
		return C.varve_repository_create(path, place)
	})
}

// CreateVolatile creates a repository in a new directory below parent (empty: /dev/shm) that is
// removed when it is closed, and in which nothing is synced: for fuzzers and tests.
func CreateVolatile(parent string) (*Repository, error) {
	return create(parent, true, func(path *C.char, place **C.varve_repository) C.int {
		return C.varve_repository_create_volatile(path, place)
	})
}

func create(
	path string, emptyIsNil bool, function func(*C.char, **C.varve_repository) C.int,
) (*Repository, error) {
	var a arena
	defer a.free()
	place := a.text(path, emptyIsNil)
	var handle *C.varve_repository
	if err := a.call(func() C.int { return function(place, &handle) }); err != nil {
		return nil, err
	}
	return newRepository(handle), nil
}

// OpenOptions are the options of [Open].
type OpenOptions struct {
	Writing bool // otherwise for reading, which changes nothing
	// Wait is how long to wait while another process is writing; negative: without limit.
	Wait time.Duration
}

// Open opens a repository; without options for reading. Blocks. The context ends the wait for
// another process that is writing.
func Open(ctx context.Context, path string, options *OpenOptions) (*Repository, error) {
	var a arena
	defer a.free()
	w := a.watch(ctx, nil)
	place := (*C.struct_varve_open_options)(a.allocate(C.sizeof_struct_varve_open_options))
	place.size = C.sizeof_struct_varve_open_options
	place.cancellation = w.cancellation
	if options != nil {
		if options.Writing {
			place.access = C.VARVE_WRITING
		}
		place.wait_nanoseconds = C.int64_t(options.Wait)
		if options.Wait < 0 {
			place.wait_nanoseconds = -1
		}
	}
	text := a.text(path, false)
	var handle *C.varve_repository
	err := w.end(a.call(func() C.int { return C.varve_repository_open(text, place, &handle) }))
	if err != nil {
		return nil, err
	}
	return newRepository(handle), nil
}

// Close closes the repository. It fails with [Busy], and closes nothing, while it has sessions.
// Readers remain usable. Blocks.
func (r *Repository) Close() error {
	err := call(func() C.int { return C.varve_repository_close(r.handle) })
	if failure, ok := err.(*Error); !ok || failure.Code != Busy {
		runtime.SetFinalizer(r, nil)
	}
	return err
}

// Statistics say what a repository holds, and what it costs.
type Statistics struct {
	CheckpointCount    uint64
	PageCount          uint64 // of all checkpoints
	ZeroPageCount      uint64
	UniquePageCount    uint64 // stored
	ChangedPageCount   uint64
	LogicalByteCount   uint64 // as full copies
	ByteCount          uint64 // of all packs
	MetadataByteCount  uint64
	AbandonedByteCount uint64 // of captures that were never published
}

// Statistics computes statistics, all of one moment. Blocks.
func (r *Repository) Statistics() (Statistics, error) {
	defer runtime.KeepAlive(r)
	var s C.struct_varve_statistics
	s.size = C.sizeof_struct_varve_statistics
	err := call(func() C.int { return C.varve_repository_statistics(r.handle, &s) })
	return Statistics{
		CheckpointCount:    uint64(s.checkpoint_count),
		PageCount:          uint64(s.page_count),
		ZeroPageCount:      uint64(s.zero_page_count),
		UniquePageCount:    uint64(s.unique_page_count),
		ChangedPageCount:   uint64(s.changed_page_count),
		LogicalByteCount:   uint64(s.logical_byte_count),
		ByteCount:          uint64(s.byte_count),
		MetadataByteCount:  uint64(s.metadata_byte_count),
		AbandonedByteCount: uint64(s.abandoned_byte_count),
	}, err
}

// A VerifyReport is the result of a verification.
type VerifyReport struct {
	CheckpointCount         uint64 // that are whole, as far as they were read
	PackCount               uint64
	ByteCount               uint64
	PageCount               uint64 // decompressed and hashed
	AbandonedByteCount      uint64
	FindingCount            uint64 // damaged places
	AffectedCheckpointCount uint64 // that cannot be restored bit for bit
}

// Verify reads and verifies every byte, on all processors. Damage is counted in the report, and is
// not an error. The progress function may be nil. Blocks.
func (r *Repository) Verify(ctx context.Context, progress ProgressFunc) (VerifyReport, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	w := a.watch(ctx, progress)
	var v C.struct_varve_verify_report
	v.size = C.sizeof_struct_varve_verify_report
	err := w.end(a.call(func() C.int {
		return C.varve_repository_verify(r.handle, nil, w.place, &v)
	}))
	return VerifyReport{
		CheckpointCount:         uint64(v.checkpoint_count),
		PackCount:               uint64(v.pack_count),
		ByteCount:               uint64(v.byte_count),
		PageCount:               uint64(v.page_count),
		AbandonedByteCount:      uint64(v.abandoned_byte_count),
		FindingCount:            uint64(v.finding_count),
		AffectedCheckpointCount: uint64(v.affected_checkpoint_count),
	}, err
}

// Forget forgets checkpoints: all of them or, if it fails, none. A prune reclaims their space.
// Blocks for one sync.
func (r *Repository) Forget(ids ...ID) error {
	defer runtime.KeepAlive(r)
	var place *C.varve_id
	if len(ids) > 0 {
		place = (*C.varve_id)(unsafe.Pointer(&ids[0]))
	}
	return call(func() C.int {
		return C.varve_repository_forget(r.handle, place, C.size_t(len(ids)))
	})
}

// A PruneResult is what a prune did.
type PruneResult struct {
	ByteCount          uint64 // of all packs, before
	FreedByteCount     uint64 // by which they shrank
	CopiedByteCount    uint64 // that were written
	RemovedPackCount   uint64
	RewrittenPackCount uint64
}

// Prune frees the space of what was forgotten. Up to unusedPercentMax of the packs may remain
// unused. If it fails, completed steps remain, nothing that is needed is lost, and another prune
// does the rest. Blocks.
func (r *Repository) Prune(ctx context.Context, unusedPercentMax float64) (PruneResult, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	w := a.watch(ctx, nil)
	var options C.struct_varve_prune_options
	options.size = C.sizeof_struct_varve_prune_options
	options.unused_percent_max = C.double(unusedPercentMax)
	var plan *C.varve_plan
	var done C.struct_varve_prune_info
	done.size = C.sizeof_struct_varve_prune_info
	err := a.call(func() C.int { return C.varve_prune_plan(r.handle, &options, w.place, &plan) })
	if err == nil {
		err = call(func() C.int { return C.varve_plan_execute(plan, w.place, &done) })
		C.varve_plan_free(plan)
	}
	return PruneResult{
		ByteCount:          uint64(done.byte_count),
		FreedByteCount:     uint64(done.freed_byte_count),
		CopiedByteCount:    uint64(done.copied_byte_count),
		RemovedPackCount:   uint64(done.removed_pack_count),
		RewrittenPackCount: uint64(done.rewritten_pack_count),
	}, w.end(err)
}

// RestoreOptions are the options of a restore.
type RestoreOptions struct {
	Volume string // empty: the memory; of a disk, blocks are frames
	// StartsZeroed says that the memory is zero where it is not written: zero pages are skipped.
	StartsZeroed bool
	Progress     ProgressFunc // or nil
}

// A RestoreResult is what a restore did.
type RestoreResult struct {
	State            []byte // that the capture was given
	WrittenPageCount uint64
	ReadByteCount    uint64 // from packs
}

// Restore fills regions with a volume of a checkpoint: their frames must be exactly the
// checkpoint's. Each page is verified. When it fails, the regions have a part of the checkpoint,
// and the guest must not run. Options may be nil. Blocks.
func (r *Repository) Restore(
	ctx context.Context, id ID, regions []Region, options *RestoreOptions,
) (RestoreResult, error) {
	defer runtime.KeepAlive(r)
	if options == nil {
		options = &RestoreOptions{}
	}
	var a arena
	defer a.free()
	place := (*C.struct_varve_restore_options)(a.allocate(C.sizeof_struct_varve_restore_options))
	place.size = C.sizeof_struct_varve_restore_options
	place.volume = a.text(options.Volume, true)
	if options.StartsZeroed {
		place.starts_zeroed = 1
	}
	array, memories := a.regions(regions)
	defer memories.release()
	w := a.watch(ctx, options.Progress)
	var done C.struct_varve_restore_result
	done.size = C.sizeof_struct_varve_restore_result
	var state unsafe.Pointer
	var count C.size_t
	checkpoint := a.id(&id)
	err := w.end(a.call(func() C.int {
		return C.varve_restore_regions(r.handle, checkpoint, array, C.size_t(len(regions)), place,
			w.place, &done, &state, &count)
	}))
	if err != nil {
		return RestoreResult{}, err
	}
	return RestoreResult{
		State:            takeBytes(state, count),
		WrittenPageCount: uint64(done.written_page_count),
		ReadByteCount:    uint64(done.read_byte_count),
	}, nil
}

// Export writes a volume (empty: the memory) raw to a file or pipe, from its position on; what does
// not exist is zeros. Each page is verified first. It puts the file into blocking mode, as
// [os.File.Fd] does. After a failure a part has been written. Blocks.
func (r *Repository) Export(
	ctx context.Context, id ID, volume string, file *os.File, progress ProgressFunc,
) error {
	defer runtime.KeepAlive(r)
	defer runtime.KeepAlive(file)
	var a arena
	defer a.free()
	name, checkpoint := a.text(volume, true), a.id(&id)
	w := a.watch(ctx, progress)
	return w.end(a.call(func() C.int {
		return C.varve_checkpoint_export(r.handle, checkpoint, name, C.VARVE_FORMAT_RAW,
			C.int(file.Fd()), w.place)
	}))
}
