package varve

import (
	"bytes"
	"context"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

var background = context.Background()

// A machine has two regions of memory, and a bitmap for each.
type machine struct {
	memories [][]byte
	bitmaps  [][]uint64
	regions  []Region
	random   *rand.Rand
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	first, err := NewMemory(100 * PageSize)
	must(t, err)
	second, err := syscall.Mmap(-1, 0, 30*PageSize, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANONYMOUS|syscall.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() {
		must(t, first.Close())
		must(t, syscall.Munmap(second))
	})
	return &machine{
		memories: [][]byte{first.Bytes(), second},
		bitmaps:  [][]uint64{make([]uint64, 2), make([]uint64, 1)},
		regions: []Region{
			first.Region(0), {GuestAddress: 200 * PageSize, Mapped: second},
		},
		random: rand.New(rand.NewSource(1)),
	}
}

func (m *machine) write(region, page int) {
	m.random.Read(m.memories[region][page*PageSize : (page+1)*PageSize])
	m.bitmaps[region][page/64] |= 1 << (page % 64)
}

func (m *machine) run() {
	for count := 0; count < 10; count++ {
		m.write(0, m.random.Intn(100))
		m.write(1, m.random.Intn(30))
	}
}

func (m *machine) takeDirty() *Dirty {
	dirty := &Dirty{Bitmaps: m.bitmaps}
	m.bitmaps = [][]uint64{make([]uint64, 2), make([]uint64, 1)}
	return dirty
}

func (m *machine) copy() [][]byte {
	var copies [][]byte
	for _, memory := range m.memories {
		copies = append(copies, append([]byte(nil), memory...))
	}
	return copies
}

func (m *machine) compare(t *testing.T, expected [][]byte) {
	t.Helper()
	for index, memory := range m.memories {
		if !bytes.Equal(memory, expected[index]) {
			t.Fatalf("region %d differs", index)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, err error, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got %v, expected %v", err, target)
	}
}

func equal[T comparable](t *testing.T, value, expected T) {
	t.Helper()
	if value != expected {
		t.Fatalf("got %v, expected %v", value, expected)
	}
}

// newStore creates a repository, which is closed at the end unless the test closed it.
func newStore(t *testing.T) (*Repository, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store")
	repository, err := Create(path)
	must(t, err)
	t.Cleanup(func() {
		if err := repository.Close(); err != nil && !errors.Is(err, InvalidHandle) {
			t.Error(err)
		}
	})
	return repository, path
}

// newSession begins a session, which is closed at the end unless the test closed it.
func newSession(t *testing.T, repository *Repository, machine *machine) *Session {
	t.Helper()
	session, err := repository.Session("machine", machine.regions, nil)
	must(t, err)
	t.Cleanup(func() {
		if err := session.Close(); err != nil && !errors.Is(err, InvalidHandle) {
			t.Error(err)
		}
	})
	return session
}

// damage overwrites bytes of the only pack.
func damage(t *testing.T, path string) {
	t.Helper()
	pack, err := os.OpenFile(filepath.Join(path, "packs", "00000001.pack"), os.O_RDWR, 0)
	must(t, err)
	defer pack.Close()
	_, err = pack.WriteAt([]byte("damaged!"), 9000)
	must(t, err)
}
