package varve

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

type taken struct {
	id    ID
	copy  [][]byte
	state []byte
}

func TestCapturesRevertsAndRestores(t *testing.T) {
	machine := newMachine(t)
	repository, _ := newStore(t)
	session := newSession(t, repository, machine)
	parent, err := session.Parent()
	must(t, err)
	if parent != nil {
		t.Fatal("a new lineage has a parent")
	}
	var all []taken
	for number := 0; number < 20; number++ {
		machine.run()
		state := []byte(fmt.Sprint("state ", number))
		label := fmt.Sprint("label-", number)
		result, err := session.Capture(background,
			&Input{Label: label, Dirty: machine.takeDirty(), State: state})
		must(t, err)
		all = append(all, taken{result.ID, machine.copy(), state})
		if number > 0 && (result.ChangedPageCount == 0 || result.ChangedPageCount > 20) {
			t.Fatalf("%d pages changed", result.ChangedPageCount)
		}
	}
	parent, err = session.Parent()
	must(t, err)
	equal(t, *parent, all[19].id)
	for _, number := range []int{3, 19, 0, 11} {
		machine.run()
		reverted, err := session.Revert(background, all[number].id, machine.takeDirty())
		must(t, err)
		machine.compare(t, all[number].copy)
		equal(t, string(reverted.State), string(all[number].state))
	}
	must(t, session.Close())
	checkRestore(t, repository, all[7])
	checkBranch(t, repository, machine, all[7])
	checkLists(t, repository, all)
}

func checkRestore(t *testing.T, repository *Repository, taken taken) {
	t.Helper()
	other := newMachine(t)
	restored, err := repository.Restore(background, taken.id, other.regions,
		&RestoreOptions{StartsZeroed: true})
	must(t, err)
	other.compare(t, taken.copy)
	equal(t, string(restored.State), string(taken.state))
	state, err := repository.State(taken.id)
	must(t, err)
	equal(t, string(state), string(taken.state))
	for _, name := range []string{"label-7", "machine~12", taken.id.String()[:16]} {
		id, err := repository.Find(name)
		must(t, err)
		equal(t, id, taken.id)
	}
}

func checkBranch(t *testing.T, repository *Repository, machine *machine, from taken) {
	t.Helper()
	session, err := repository.Session("branch", machine.regions,
		&SessionOptions{Parent: &from.id, WorkerCount: 1})
	must(t, err)
	_, err = session.Revert(background, from.id, nil)
	must(t, err)
	machine.write(1, 4)
	result, err := session.Capture(background, &Input{Dirty: &Dirty{Frames: []uint64{204}}})
	must(t, err)
	must(t, session.Close())
	checkpoint, err := repository.Checkpoint(result.ID)
	must(t, err)
	equal(t, *checkpoint.Parent, from.id)
	equal(t, checkpoint.Lineage, "branch")
	ranges, err := repository.Difference(from.id, result.ID, "")
	must(t, err)
	if !reflect.DeepEqual(ranges, []Range{{204, 1}}) {
		t.Fatal(ranges)
	}
}

func checkLists(t *testing.T, repository *Repository, all []taken) {
	t.Helper()
	var ids []ID
	for _, taken := range all {
		ids = append(ids, taken.id)
	}
	listed, err := repository.Checkpoints(Selection{Lineage: "machine"})
	must(t, err)
	if !reflect.DeepEqual(listed, ids) {
		t.Fatal(listed)
	}
	listed, err = repository.Checkpoints(Selection{Lineage: "machine", Newest: 2, Before: &ids[5]})
	must(t, err)
	if !reflect.DeepEqual(listed, ids[3:5]) {
		t.Fatal(listed)
	}
	checkpoint, err := repository.Checkpoint(ids[9])
	must(t, err)
	equal(t, checkpoint.Label, "label-9")
	if age := time.Since(checkpoint.Time); age < 0 || age > time.Hour {
		t.Fatalf("taken %v ago", age)
	}
	listed, err = repository.Checkpoints(Selection{Lineage: "machine", Until: &checkpoint.Time})
	must(t, err)
	equal(t, len(listed), 10)
	volumes, err := repository.Volumes(ids[0])
	must(t, err)
	equal(t, len(volumes), 1)
	equal(t, volumes[0].Name, "memory")
	equal(t, volumes[0].PageCount, 130)
	equal(t, volumes[0].ExtentByteCount, 230*PageSize)
	must(t, repository.SetLabel(ids[16], "given-later"))
	labelled, err := repository.Find("given-later")
	must(t, err)
	equal(t, labelled, ids[16])
	must(t, repository.SetLabel(ids[16], ""))
	unlabelled, err := repository.Checkpoint(ids[16])
	must(t, err)
	equal(t, unlabelled.Label, "")
	statistics, err := repository.Statistics()
	must(t, err)
	equal(t, statistics.CheckpointCount, 21)
	must(t, repository.Forget(ids[:15]...))
	pruned, err := repository.Prune(background, 0)
	must(t, err)
	if pruned.FreedByteCount == 0 {
		t.Fatal("the prune freed nothing")
	}
	report, err := repository.Verify(background, nil)
	must(t, err)
	equal(t, report.CheckpointCount, 6)
	equal(t, report.FindingCount, 0)
}

func TestReadersAndExports(t *testing.T) {
	machine := newMachine(t)
	repository, _ := newStore(t)
	session := newSession(t, repository, machine)
	machine.run()
	result, err := session.Capture(background, nil)
	must(t, err)
	expected := machine.copy()
	whole := make([]byte, 230*PageSize)
	copy(whole, expected[0])
	copy(whole[200*PageSize:], expected[1])

	reader, err := repository.Reader(result.ID, "")
	must(t, err)
	defer reader.Close()
	read, err := io.ReadAll(io.NewSectionReader(reader, 0, int64(len(whole))))
	must(t, err)
	if !bytes.Equal(read, whole) {
		t.Fatal("the reader read something else")
	}
	tail := bytes.Repeat([]byte{1}, 100)
	count, err := reader.ReadAt(tail, int64(len(whole))-60)
	must(t, err)
	equal(t, count, 100)
	if !bytes.Equal(tail, append(append([]byte(nil), whole[len(whole)-60:]...), make([]byte, 40)...)) {
		t.Fatal("the end differs")
	}
	_, err = reader.ReadAt(tail, -1)
	expect(t, err, InvalidArgument)

	file, err := os.CreateTemp(t.TempDir(), "export")
	must(t, err)
	defer file.Close()
	must(t, repository.Export(background, result.ID, "memory", file, nil))
	exported, err := os.ReadFile(file.Name())
	must(t, err)
	if !bytes.Equal(exported, whole) {
		t.Fatal("the export differs")
	}
	_, err = repository.Reader(result.ID, "nothing")
	expect(t, err, NotFound)
}

func TestACaptureThatHasBegun(t *testing.T) {
	machine := newMachine(t)
	repository, err := CreateVolatile("")
	must(t, err)
	defer repository.Close()
	session, err := repository.Session("machine", machine.regions, nil)
	must(t, err)
	defer session.Close()
	machine.run()
	capture, err := session.Begin(background, &Input{Dirty: machine.takeDirty()})
	must(t, err)
	expected := machine.copy()
	machine.run()
	descriptor, err := capture.Descriptor()
	must(t, err)
	var set syscall.FdSet
	set.Bits[descriptor/64] |= 1 << (descriptor % 64)
	count, err := syscall.Select(descriptor+1, &set, nil, nil, &syscall.Timeval{Sec: 60})
	must(t, err)
	equal(t, count, 1)
	result, err := capture.Wait(background)
	must(t, err)
	ctx, cancel := context.WithCancel(background)
	again, err := capture.Wait(ctx)
	must(t, err)
	equal(t, again, result)
	cancel()
	again, err = capture.Wait(ctx)
	must(t, err)
	equal(t, again, result)
	must(t, capture.Close())
	other := newMachine(t)
	_, err = repository.Restore(background, result.ID, other.regions, nil)
	must(t, err)
	other.compare(t, expected)
}

func TestARegionOfAFile(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "memory")
	must(t, err)
	defer file.Close()
	content := bytes.Repeat([]byte("varve of clay..."), 8*PageSize/16)
	_, err = file.WriteAt(content, PageSize)
	must(t, err)
	repository, _ := newStore(t)
	regions := []Region{{File: file, Offset: PageSize, ByteCount: 8 * PageSize}}
	session, err := repository.Session("machine", regions, nil)
	must(t, err)
	result, err := session.Capture(background, nil)
	must(t, err)
	_, err = file.WriteAt([]byte("something else"), 3*PageSize)
	must(t, err)
	_, err = session.Revert(background, result.ID, nil)
	must(t, err)
	must(t, session.Close())
	read := make([]byte, len(content))
	_, err = file.ReadAt(read, PageSize)
	must(t, err)
	if !bytes.Equal(read, content) {
		t.Fatal("the file differs")
	}
}

func TestGoroutinesAndObjectsThatAreDropped(t *testing.T) {
	machine := newMachine(t)
	var group sync.WaitGroup
	defer group.Wait()
	repository, err := CreateVolatile("")
	must(t, err)
	// The memory stays mapped after the test: its session is closed by a finalizer, at some time.
	memory, err := NewMemory(100 * PageSize)
	must(t, err)
	regions := []Region{memory.Region(0), machine.regions[1]}
	session, err := repository.Session("machine", regions, nil)
	must(t, err)
	result, err := session.Capture(background, nil)
	must(t, err)
	for number := 0; number < 4; number++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for round := 0; round < 10; round++ {
				reader, err := repository.Reader(result.ID, "")
				if err == nil {
					_, err = reader.ReadAt(make([]byte, PageSize), 0)
				}
				if err == nil {
					_, err = session.Capture(background, &Input{Dirty: &Dirty{}})
				}
				if err != nil {
					t.Error(err)
				}
				deepen(2000)
				runtime.GC()
			}
		}()
	}
	group.Wait()
	runtime.KeepAlive(session)
	session, repository, regions = nil, nil, nil
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		if err := memory.Close(); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no finalizer closed the session")
		}
	}
}

// deepen makes the stack grow and be copied, with handles on it that are no addresses.
func deepen(depth int) {
	var handle Repository
	*(*uintptr)(unsafe.Pointer(&handle.handle)) = 3
	if depth > 0 {
		deepen(depth - 1)
	}
	runtime.KeepAlive(&handle)
}

func TestFilesAreCutAndRevertedWithTheMemory(t *testing.T) {
	place := os.Getenv("VARVE_REFLINKS")
	if place == "" {
		t.Skip("there is no file system with reflinks")
	}
	place, err := os.MkdirTemp(place, "go")
	must(t, err)
	defer os.RemoveAll(place)
	path := place + "/root.img"
	write := func(text string) { must(t, os.WriteFile(path, []byte(text), 0o600)) }
	image := func(first byte) string {
		return string(bytes.Repeat([]byte{first}, 5*PageSize)) + string(make([]byte, 512))
	}
	write(image('a'))
	machine := newMachine(t)
	repository, _ := newStore(t)
	session, err := repository.Session("machine", machine.regions, &SessionOptions{
		Files: []File{{Name: "root", Path: path}}, StateDirectory: place + "/state",
	})
	must(t, err)
	first, err := session.Capture(background, nil)
	must(t, err)
	write(image('b'))
	machine.run()
	_, err = session.Capture(background, nil)
	must(t, err)
	_, err = session.Revert(background, first.ID, nil)
	must(t, err)
	now, err := os.ReadFile(path)
	must(t, err)
	equal(t, string(now), image('a'))
	must(t, session.Close())
	volumes, err := repository.Volumes(first.ID)
	must(t, err)
	equal(t, len(volumes), 2)
	equal(t, volumes[1].Name, "root")
	equal(t, volumes[1].ExtentByteCount, 5*PageSize+512)
}
