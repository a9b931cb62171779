package varve

/*
#include <stdlib.h>
#include <varve.h>
*/
import "C"

import (
	"runtime"
	"time"
	"unsafe"
)

// A Selection says which checkpoints to list.
type Selection struct {
	Lineage string     // empty: of all lineages
	Newest  uint64     // at most this many, the newest; 0: all
	Before  *ID        // published before this one; or nil
	Since   *time.Time // paused at this time or later; or nil
	Until   *time.Time // paused at this time or earlier; or nil
}

// Checkpoints lists checkpoints in order of publication. Blocks.
func (r *Repository) Checkpoints(selection Selection) ([]ID, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	place := (*C.struct_varve_selection)(a.allocate(C.sizeof_struct_varve_selection))
	place.size = C.sizeof_struct_varve_selection
	place.lineage = a.text(selection.Lineage, true)
	place.newest = C.uint64_t(selection.Newest)
	place.before = a.id(selection.Before)
	place.since = a.time(selection.Since)
	place.until = a.time(selection.Until)
	var array *C.varve_id
	var count C.size_t
	err := a.call(func() C.int {
		return C.varve_checkpoint_list(r.handle, place, &array, &count)
	})
	if err != nil {
		return nil, err
	}
	defer C.varve_free(unsafe.Pointer(array))
	ids := make([]ID, int(count))
	for index, id := range unsafe.Slice(array, int(count)) {
		ids[index] = unpackID(id)
	}
	return ids, nil
}

func (a *arena) time(value *time.Time) *C.int64_t {
	if value == nil {
		return nil
	}
	place := (*C.int64_t)(a.allocate(8))
	*place = C.int64_t(value.UnixNano())
	return place
}

// Find finds the checkpoint with a name: an id or a prefix of it, a lineage (its newest checkpoint)
// or a label; each may be followed by ~N, for N checkpoints before it. Blocks.
func (r *Repository) Find(name string) (ID, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	text := a.text(name, false)
	var id C.varve_id
	err := a.call(func() C.int { return C.varve_checkpoint_find(r.handle, text, &id) })
	return unpackID(id), err
}

// A Checkpoint describes a checkpoint.
type Checkpoint struct {
	ID               ID
	Parent           *ID // it may have been forgotten; nil if there is none
	OmitsDisks       bool
	Lineage          string
	Label            string        // empty if there is none
	Time             time.Time     // when the guest was paused
	Pause            time.Duration // for how long
	PageCount        uint64
	ZeroPageCount    uint64
	ChangedPageCount uint64 // since the parent
	StoredPageCount  uint64
	AddedByteCount   uint64
	VolumeCount      int // the memory and the disks
}

// Checkpoint describes a checkpoint. Blocks.
func (r *Repository) Checkpoint(id ID) (Checkpoint, error) {
	defer runtime.KeepAlive(r)
	checkpoint := packID(id)
	var c C.struct_varve_checkpoint
	c.size = C.sizeof_struct_varve_checkpoint
	err := call(func() C.int { return C.varve_checkpoint_show(r.handle, &checkpoint, &c) })
	if err != nil {
		return Checkpoint{}, err
	}
	result := Checkpoint{
		ID:               unpackID(c.id),
		OmitsDisks:       c.omits_disks != 0,
		Lineage:          C.GoString(&c.lineage[0]),
		Label:            C.GoString(&c.label[0]),
		Time:             time.Unix(0, int64(c.time_nanoseconds)),
		Pause:            time.Duration(c.pause_nanoseconds),
		PageCount:        uint64(c.page_count),
		ZeroPageCount:    uint64(c.zero_page_count),
		ChangedPageCount: uint64(c.changed_page_count),
		StoredPageCount:  uint64(c.stored_page_count),
		AddedByteCount:   uint64(c.added_byte_count),
		VolumeCount:      int(c.volume_count),
	}
	if c.has_parent != 0 {
		parent := unpackID(c.parent)
		result.Parent = &parent
	}
	return result, nil
}

// A Volume describes the memory of a checkpoint, or one of its disks.
type Volume struct {
	Name             string // "memory", or the disk's
	IsDisk           bool
	BlockByteCount   int // logical block size of a disk; 4096 for the memory
	ByteCount        uint64
	PageCount        uint64 // that exist; of a disk, blocks that are not zero
	ZeroPageCount    uint64
	ChangedPageCount uint64
	Root             [32]byte // Merkle root: equal for equal contents
	ExtentByteCount  uint64   // where it ends: what is read past that is zeros
}

// Volumes describes the volumes of a checkpoint: the memory, then disks. Blocks.
func (r *Repository) Volumes(id ID) ([]Volume, error) {
	defer runtime.KeepAlive(r)
	checkpoint := packID(id)
	var volumes []Volume
	for {
		var v C.struct_varve_volume
		v.size = C.sizeof_struct_varve_volume
		err := call(func() C.int {
			return C.varve_checkpoint_volume(r.handle, &checkpoint, C.size_t(len(volumes)), &v)
		})
		if err != nil {
			// Past the last there is none; but of an unknown checkpoint there is none at all.
			if failure, ok := err.(*Error); ok && failure.Code == NotFound && len(volumes) > 0 {
				return volumes, nil
			}
			return nil, err
		}
		volumes = append(volumes, Volume{
			Name:             C.GoString(&v.name[0]),
			IsDisk:           v.is_disk != 0,
			BlockByteCount:   int(v.block_byte_count),
			ByteCount:        uint64(v.byte_count),
			PageCount:        uint64(v.page_count),
			ZeroPageCount:    uint64(v.zero_page_count),
			ChangedPageCount: uint64(v.changed_page_count),
			Root:             *(*[32]byte)(unsafe.Pointer(&v.root)),
			ExtentByteCount:  uint64(v.extent_byte_count),
		})
	}
}

// SetLabel gives a checkpoint a label, or removes the one that it has (empty). Later checkpoints of
// its lineage lose that label. Blocks for one sync.
func (r *Repository) SetLabel(id ID, label string) error {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	checkpoint, name := packID(id), a.text(label, true)
	return a.call(func() C.int {
		return C.varve_checkpoint_set_label(r.handle, &checkpoint, name)
	})
}

// State reads the state that the capture was given. Blocks.
func (r *Repository) State(id ID) ([]byte, error) {
	defer runtime.KeepAlive(r)
	checkpoint := packID(id)
	var state unsafe.Pointer
	var count C.size_t
	err := call(func() C.int {
		return C.varve_checkpoint_state(r.handle, &checkpoint, &state, &count)
	})
	if err != nil {
		return nil, err
	}
	return takeBytes(state, count), nil
}

// A Range is consecutive frames.
type Range struct {
	First, Count uint64
}

// Difference determines the pages in which a volume (empty: the memory) differs between two
// checkpoints, as ascending ranges that do not touch. Blocks.
func (r *Repository) Difference(from, to ID, volume string) ([]Range, error) {
	defer runtime.KeepAlive(r)
	var a arena
	defer a.free()
	name, first, second := a.text(volume, true), packID(from), packID(to)
	var array *C.varve_range
	var count C.size_t
	err := a.call(func() C.int {
		return C.varve_checkpoint_diff(r.handle, &first, &second, name, &array, &count)
	})
	if err != nil {
		return nil, err
	}
	defer C.varve_free(unsafe.Pointer(array))
	ranges := make([]Range, int(count))
	for index, place := range unsafe.Slice(array, int(count)) {
		ranges[index] = Range{uint64(place.first), uint64(place.count)}
	}
	return ranges, nil
}
