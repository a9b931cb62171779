package varve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFailuresOfRepositories(t *testing.T) {
	machine := newMachine(t)
	missing := filepath.Join(t.TempDir(), "missing")
	_, err := Open(background, missing, nil)
	expect(t, err, NotFound)
	expect(t, err, fs.ErrNotExist)
	if !strings.Contains(err.Error(), missing) {
		t.Fatal(err)
	}
	_, err = Create("a\x00b")
	expect(t, err, InvalidArgument)
	repository, path := newStore(t)
	_, err = Create(path)
	expect(t, err, Exists)
	expect(t, err, fs.ErrExist)
	options := &OpenOptions{Writing: true, Wait: time.Millisecond}
	_, err = Open(background, path, options)
	if !errors.Is(err, Busy) && !errors.Is(err, Locked) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(background, 20*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, path, &OpenOptions{Writing: true, Wait: -1})
	expect(t, err, Cancelled)
	expect(t, err, context.DeadlineExceeded)
	_, err = repository.Session("-", machine.regions, nil)
	expect(t, err, InvalidName)
	_, err = repository.Find("nothing")
	expect(t, err, NotFound)
	_, err = repository.Volumes(ID{1})
	expect(t, err, NotFound)
	session := newSession(t, repository, machine)
	expect(t, repository.Close(), Busy)
	must(t, session.Close())
	must(t, repository.Close())
	_, err = repository.Statistics()
	expect(t, err, InvalidHandle)
	expect(t, err, os.ErrClosed)
	expect(t, repository.Close(), InvalidHandle)
	reading, err := Open(background, path, nil)
	must(t, err)
	defer reading.Close()
	err = reading.Forget(ID{1})
	expect(t, err, ReadOnly)
	expect(t, err, fs.ErrPermission)
}

func TestFailuresOfSessions(t *testing.T) {
	machine := newMachine(t)
	repository, _ := newStore(t)
	session := newSession(t, repository, machine)
	short := &Dirty{Bitmaps: [][]uint64{{0}, {0}}}
	_, err := session.Capture(background, &Input{Dirty: short})
	expect(t, err, InvalidArgument)
	_, err = session.Capture(background, &Input{Dirty: &Dirty{Bitmaps: [][]uint64{{0, 0}}}})
	expect(t, err, InvalidArgument)
	_, err = session.Capture(background, &Input{Label: "a\x00b"})
	expect(t, err, InvalidArgument)
	_, err = session.Revert(background, ID{1}, nil)
	expect(t, err, NotFound)
	result, err := session.Capture(background, nil)
	must(t, err)
	_, err = repository.Restore(background, result.ID, machine.regions[:1], nil)
	expect(t, err, SizeMismatch)
	capture, err := session.Begin(background, nil)
	must(t, err)
	must(t, capture.Close())
	_, err = capture.Wait(background)
	expect(t, err, InvalidHandle)
	_, err = capture.Descriptor()
	expect(t, err, InvalidHandle)
	must(t, session.Close())
	expect(t, session.Close(), InvalidHandle)
	_, err = session.Capture(background, nil)
	expect(t, err, InvalidHandle)
	reader, err := repository.Reader(result.ID, "")
	must(t, err)
	must(t, reader.Close())
	_, err = reader.ReadAt(make([]byte, 1), 0)
	expect(t, err, InvalidHandle)
	_, err = repository.Session("machine", machine.regions, &SessionOptions{CompressionLevel: 99})
	expect(t, err, InvalidArgument)
}

func TestMemoryOfGoIsRefused(t *testing.T) {
	repository, _ := newStore(t)
	for name, memory := range map[string][]byte{
		"made": make([]byte, 16*PageSize), "empty": {},
	} {
		_, err := repository.Session("machine", []Region{{Mapped: memory}}, nil)
		if !errors.Is(err, InvalidArgument) {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = repository.Restore(background, ID{}, []Region{{Mapped: memory}}, nil)
		if !errors.Is(err, InvalidArgument) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	_, err := repository.Session("machine", []Region{{}}, nil)
	expect(t, err, InvalidArgument)
	_, err = NewMemory(5000)
	expect(t, err, InvalidArgument)
	memory, err := NewMemory(PageSize)
	must(t, err)
	session, err := repository.Session("machine", []Region{memory.Region(0)}, nil)
	must(t, err)
	expect(t, memory.Close(), Busy)
	must(t, session.Close())
	must(t, memory.Close())
	expect(t, memory.Close(), InvalidHandle)
	_, err = repository.Session("machine", []Region{memory.Region(0)}, nil)
	expect(t, err, InvalidHandle)
}

func TestProgressAndContexts(t *testing.T) {
	machine := newMachine(t)
	repository, _ := newStore(t)
	session := newSession(t, repository, machine)
	_, err := session.Capture(background, nil)
	must(t, err)
	var seen []Progress
	_, err = repository.Verify(background, func(progress Progress) error {
		seen = append(seen, progress)
		_, err := repository.Statistics()
		expect(t, err, InCallback)
		return nil
	})
	must(t, err)
	if len(seen) == 0 || seen[0].Phase != "verifying" {
		t.Fatal(seen)
	}
	mine := errors.New("mine")
	_, err = repository.Verify(background, func(Progress) error { return mine })
	expect(t, err, mine)
	func() {
		defer func() { equal(t, fmt.Sprint(recover()), "mine too") }()
		_, _ = repository.Verify(background, func(Progress) error { panic("mine too") })
		t.Fatal("the panic was lost")
	}()
	ctx, cancel := context.WithCancel(background)
	_, err = repository.Verify(ctx, func(Progress) error {
		cancel()
		time.Sleep(10 * time.Millisecond)
		return nil
	})
	expect(t, err, Cancelled)
	expect(t, err, context.Canceled)
	machine.run()
	_, err = session.Capture(ctx, &Input{Dirty: machine.takeDirty()})
	expect(t, err, context.Canceled)
	// Its pages are in the next one.
	result, err := session.Capture(background, &Input{Dirty: &Dirty{}})
	must(t, err)
	other := newMachine(t)
	_, err = repository.Restore(background, result.ID, other.regions, nil)
	must(t, err)
	other.compare(t, machine.copy())
}

func TestWaitingEndsWithItsContext(t *testing.T) {
	machine := newMachine(t)
	repository, _ := newStore(t)
	session := newSession(t, repository, machine)
	// A capture can end before a context that is already done is looked at: one of them does not.
	for attempt := 0; attempt < 1000; attempt++ {
		machine.run()
		capture, err := session.Begin(background, &Input{Dirty: machine.takeDirty()})
		must(t, err)
		ctx, cancel := context.WithCancel(background)
		cancel()
		_, early := capture.Wait(ctx)
		_, err = capture.Wait(background)
		must(t, err)
		must(t, capture.Close())
		if early != nil {
			expect(t, early, context.Canceled)
			return
		}
	}
	t.Fatal("no capture was waited for")
}

func TestDamageSaysWhere(t *testing.T) {
	machine := newMachine(t)
	repository, path := newStore(t)
	session := newSession(t, repository, machine)
	machine.run()
	result, err := session.Capture(background, nil)
	must(t, err)
	must(t, session.Close())
	must(t, repository.Close())
	damage(t, path)
	repository, err = Open(background, path, nil)
	must(t, err)
	defer repository.Close()
	report, err := repository.Verify(background, nil)
	must(t, err)
	if report.FindingCount == 0 || report.AffectedCheckpointCount != 1 {
		t.Fatal(report)
	}
	_, err = repository.Restore(background, result.ID, machine.regions, nil)
	expect(t, err, Corrupted)
	var failure *Error
	if !errors.As(err, &failure) || failure.Corruption == nil {
		t.Fatal(err)
	}
	equal(t, failure.Corruption.File, "packs/00000001.pack")
	equal(t, *failure.Corruption.Checkpoint, result.ID)
	if failure.Corruption.Reason == "" || failure.Corruption.Object == "" {
		t.Fatal(failure.Corruption)
	}
}

func TestErrorsAndIDsAsText(t *testing.T) {
	err := error(&Error{Code: CallFailed, Message: "it failed", Number: int(syscall.EIO)})
	expect(t, err, syscall.EIO)
	equal(t, err.Error(), "varve: it failed")
	equal(t, Corrupted.Error(), "varve: corrupted")
	equal(t, Code(77).Error(), "varve: code 77")
	for _, code := range []Code{InvalidArgument, Busy, InvalidStream, Failed} {
		if codeNames[code] == "" {
			t.Fatal(int(code))
		}
	}
	id := ID{0xab, 31: 0xcd}
	parsed, err := ParseID(id.String())
	must(t, err)
	equal(t, parsed, id)
	for _, text := range []string{"", "ab", strings.Repeat("zz", 32)} {
		if _, err := ParseID(text); err == nil {
			t.Fatalf("%q was parsed", text)
		}
	}
	if Version() == "" {
		t.Fatal("the library has no version")
	}
}
