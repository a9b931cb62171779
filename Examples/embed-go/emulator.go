// A little emulator that takes checkpoints of its machine with the binding for Go.
//
//	PKG_CONFIG_PATH=PREFIX/lib/pkgconfig go build
//	LD_LIBRARY_PATH=PREFIX/lib ./emulator DIRECTORY    the repository, which does not exist yet
//
// The machine has 16 MiB of memory and two registers. Each store marks its page in a bitmap, as
// KVM_GET_DIRTY_LOG has it. The emulator takes 100 checkpoints while the machine runs, reverts it
// to some of them in place, begins a branch from one, and fills the memory of another machine. Each
// time it compares the whole memory with what it was when the checkpoint was taken.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"

	"varve"
)

const (
	pageCount       = 4096
	checkpointCount = 100
)

// ---- The machine ----

type registers struct {
	Counter, Accumulator uint64
}

type machine struct {
	memory *varve.Memory
	bytes  []byte
	registers
	dirty []uint64
}

func newMachine() *machine {
	memory, err := varve.NewMemory(pageCount * varve.PageSize)
	must(err, "mapping memory")
	return &machine{
		memory: memory, bytes: memory.Bytes(), dirty: make([]uint64, pageCount/64),
	}
}

// step is one instruction: it stores somewhere, and marks the page.
func (m *machine) step() {
	m.Counter++
	m.Accumulator = m.Accumulator*6364136223846793005 + m.Counter
	page := (m.Accumulator >> 40) % pageCount
	word := (m.Accumulator >> 20) % (varve.PageSize / 8)
	binary.LittleEndian.PutUint64(m.bytes[page*varve.PageSize+word*8:], m.Accumulator)
	m.dirty[page/64] |= 1 << (page % 64)
}

func (m *machine) run(count int) {
	for ; count > 0; count-- {
		m.step()
	}
}

// fingerprint is a number that depends on every byte of the memory, and on the registers.
func (m *machine) fingerprint() uint64 {
	sum := m.Counter ^ m.Accumulator<<1
	for offset := 0; offset < len(m.bytes); offset += 8 {
		sum = (sum ^ binary.LittleEndian.Uint64(m.bytes[offset:])) * 0x9e3779b97f4a7c15
		sum ^= sum >> 29
	}
	return sum
}

// ---- Its checkpoints ----

// must ends the program if a call failed.
func must(err error, what string) {
	if err != nil {
		log.Fatalf("emulator: %s: %v", what, err)
	}
}

func (m *machine) regions() []varve.Region {
	return []varve.Region{m.memory.Region(0)}
}

// begin begins a checkpoint. When this returns the machine may run again, and the disk is busy.
func (m *machine) begin(session *varve.Session) *varve.Capture {
	var state bytes.Buffer
	must(binary.Write(&state, binary.LittleEndian, m.registers), "packing the registers")
	capture, err := session.Begin(context.Background(), &varve.Input{
		Dirty: &varve.Dirty{Bitmaps: [][]uint64{m.dirty}},
		State: state.Bytes(),
	})
	must(err, "beginning a checkpoint")
	// What the bitmap said is with the session now, also if the checkpoint should fail.
	m.clear()
	return capture
}

func end(capture *varve.Capture) varve.ID {
	result, err := capture.Wait(context.Background())
	must(err, "waiting for a checkpoint")
	must(capture.Close(), "closing a capture")
	return result.ID
}

func (m *machine) revert(session *varve.Session, id varve.ID) {
	result, err := session.Revert(
		context.Background(), id, &varve.Dirty{Bitmaps: [][]uint64{m.dirty}})
	must(err, "reverting")
	m.load(result.State)
	m.clear()
}

func (m *machine) load(state []byte) {
	must(binary.Read(bytes.NewReader(state), binary.LittleEndian, &m.registers),
		"unpacking the registers")
}

func (m *machine) clear() {
	for word := range m.dirty {
		m.dirty[word] = 0
	}
}

func (m *machine) compare(expected uint64, what string) {
	if m.fingerprint() != expected {
		log.Fatalf("emulator: the memory differs after %s", what)
	}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: emulator DIRECTORY")
	}
	m := newMachine()
	repository, err := varve.Create(os.Args[1])
	must(err, "creating the repository")
	ids, fingerprints := travel(repository, m)
	branched := branch(repository, m, ids[50])

	other := newMachine()
	restored, err := repository.Restore(context.Background(), branched, other.regions(),
		&varve.RestoreOptions{StartsZeroed: true})
	must(err, "restoring")
	other.load(restored.State)
	other.compare(m.fingerprint(), "a restore")
	if m.fingerprint() == fingerprints[50] {
		log.Fatal("emulator: the branch has the memory of its parent")
	}
	fmt.Println("restore: the memory is equal")

	report, err := repository.Verify(context.Background(), nil)
	must(err, "verifying")
	fmt.Printf("verified: %d checkpoints, %d damaged places\n",
		report.CheckpointCount, report.FindingCount)
	must(repository.Close(), "closing the repository")
	must(m.memory.Close(), "unmapping memory")
	must(other.memory.Close(), "unmapping memory")
}

// travel takes the checkpoints, and reverts to some of them.
func travel(repository *varve.Repository, m *machine) (ids []varve.ID, fingerprints []uint64) {
	session, err := repository.Session("machine", m.regions(), nil)
	must(err, "beginning a session")
	var capture *varve.Capture
	for number := 0; number < checkpointCount; number++ {
		m.run(100)
		next := m.begin(session)
		fingerprints = append(fingerprints, m.fingerprint())
		// While this one is written, the machine has run for the next.
		if capture != nil {
			ids = append(ids, end(capture))
		}
		capture = next
	}
	ids = append(ids, end(capture))
	fmt.Println("checkpoints:", len(ids))

	revertCount := 0
	for number := checkpointCount - 1; number >= 0; number -= 11 {
		m.revert(session, ids[number])
		m.compare(fingerprints[number], "a revert")
		m.run(1000)
		revertCount++
	}
	fmt.Printf("reverts: %d, the memory was equal each time\n", revertCount)
	must(session.Close(), "closing the session")
	return ids, fingerprints
}

// branch has the machine go another way from a checkpoint on.
func branch(repository *varve.Repository, m *machine, parent varve.ID) varve.ID {
	session, err := repository.Session("branch", m.regions(), &varve.SessionOptions{Parent: &parent})
	must(err, "beginning a branch")
	m.revert(session, parent)
	m.Accumulator ^= 1
	m.run(100)
	branched := end(m.begin(session))
	must(session.Close(), "closing the session")
	ranges, err := repository.Difference(parent, branched, "")
	must(err, "comparing two checkpoints")
	pages := uint64(0)
	for _, frames := range ranges {
		pages += frames.Count
	}
	fmt.Println("branch: differs from its parent in 1 to 100 pages:", pages >= 1 && pages <= 100)
	return branched
}
