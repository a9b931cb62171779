package varve

/*
#include <varve.h>

static void varve_go_probe(void *memory) { (void)memory; }
*/
import "C"

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// A Memory is memory that is not Go's, for a guest: anonymous pages, mapped until Close.
type Memory struct {
	mutex    sync.Mutex
	bytes    []byte
	useCount int // sessions and restores that have it
}

// NewMemory maps zeros. The count of bytes is a positive multiple of 4096.
func NewMemory(byteCount int) (*Memory, error) {
	if byteCount <= 0 || byteCount%PageSize != 0 {
		return nil, &Error{
			Code:    InvalidArgument,
			Message: fmt.Sprintf("memory of %d bytes: it must be a multiple of 4096", byteCount),
		}
	}
	bytes, err := syscall.Mmap(-1, 0, byteCount, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANONYMOUS|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return &Memory{bytes: bytes}, nil
}

// Bytes returns the memory itself. After Close, using what it returned ends the program.
func (m *Memory) Bytes() []byte {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.bytes
}

// Region returns the whole memory as a region that the guest sees at an address.
func (m *Memory) Region(guestAddress uint64) Region {
	return Region{GuestAddress: guestAddress, owner: m}
}

// Close unmaps the memory. It fails with [Busy], and unmaps nothing, while a session has it. There
// is no finalizer: slices of the memory do not keep a Memory.
func (m *Memory) Close() error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.bytes == nil {
		return &Error{Code: InvalidHandle, Message: "the memory is closed"}
	}
	if m.useCount != 0 {
		return &Error{Code: Busy, Message: "a session has the memory: close that first"}
	}
	bytes := m.bytes
	m.bytes = nil
	return os.NewSyscallError("munmap", syscall.Munmap(bytes))
}

func (m *Memory) retain() bool {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.bytes == nil {
		return false
	}
	m.useCount++
	return true
}

func (m *Memory) release() {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.useCount--
}

// A Region is a part of a guest's memory: a [Memory], or mapped memory, or a part of a file.
type Region struct {
	// GuestAddress is where the guest sees it; a multiple of 4096.
	GuestAddress uint64
	// Mapped is memory of [syscall.Mmap], which stays mapped until the session is closed. Memory
	// that Go allocated is refused: append and make may have no part in it.
	Mapped []byte
	// File is a file or memfd, if Mapped is nil. The library maps ByteCount bytes of it from Offset
	// on, shared. It may be closed once the call that was given the region has returned.
	File              *os.File
	Offset, ByteCount uint64

	owner *Memory
}

// retained are the memories of regions that something has in use.
type retained []*Memory

func (r retained) release() {
	for _, memory := range r {
		memory.release()
	}
}

// regions packs an array of regions. What it returns keeps their memory mapped until its release.
func (a *arena) regions(regions []Region) (*C.struct_varve_region, retained) {
	if len(regions) == 0 {
		return nil, nil
	}
	var place *C.struct_varve_region
	array := unsafe.Slice((*C.struct_varve_region)(
		a.allocate(uintptr(len(regions))*unsafe.Sizeof(*place))), len(regions))
	var memories retained
	for index, region := range regions {
		place := &array[index]
		place.size = C.size_t(unsafe.Sizeof(*place))
		place.guest_address = C.uint64_t(region.GuestAddress)
		bytes := region.Mapped
		switch {
		case region.owner != nil:
			if !region.owner.retain() {
				a.fail(InvalidHandle, fmt.Sprintf("the memory of region %d is closed", index))
				continue
			}
			memories = append(memories, region.owner)
			bytes = region.owner.bytes
		case bytes == nil && region.File != nil:
			place.descriptor = C.int(region.File.Fd())
			place.offset = C.uint64_t(region.Offset)
			place.byte_count = C.uint64_t(region.ByteCount)
			continue
		case len(bytes) == 0:
			a.fail(InvalidArgument, fmt.Sprintf("region %d has no memory and no file", index))
			continue
		case isGoMemory(bytes):
			a.fail(InvalidArgument, fmt.Sprintf(
				"region %d is memory of Go, which the library may not keep: use NewMemory", index))
			continue
		}
		place.address = unsafe.Pointer(&bytes[0])
		place.byte_count = C.uint64_t(len(bytes))
	}
	return &array[0], memories
}

// isGoMemory tells whether Go allocated a slice, by asking the runtime: it refuses to pass to C
// memory of Go that points to memory of Go. With GODEBUG=cgocheck=0 it does not refuse, and neither
// does this find it.
func isGoMemory(bytes []byte) (result bool) {
	defer func() { result = recover() != nil }()
	holder := &struct{ first *byte }{&bytes[0]}
	C.varve_go_probe(unsafe.Pointer(holder))
	return false
}
