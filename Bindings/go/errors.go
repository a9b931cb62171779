package varve

// #include <varve.h>
import "C"

import (
	"fmt"
	"io/fs"
	"syscall"
	"unsafe"
)

// A Code says what kind of failure an [Error] is. It is an error itself, for errors.Is.
type Code int

// The codes of varve.h; its comments say more. Later versions of the library may have others.
const (
	InvalidArgument   Code = C.VARVE_INVALID_ARGUMENT   // the call itself is wrong
	InvalidHandle     Code = C.VARVE_INVALID_HANDLE     // what was called is closed
	InCallback        Code = C.VARVE_IN_CALLBACK        // called from a progress function
	CallbackFailed    Code = C.VARVE_CALLBACK_FAILED    // not of functions of this package
	Cancelled         Code = C.VARVE_CANCELLED          // by a context or a progress function
	TimedOut          Code = C.VARVE_TIMED_OUT          // not of functions of this package
	Closed            Code = C.VARVE_CLOSED             // the session was closed meanwhile
	NoMemory          Code = C.VARVE_NO_MEMORY          // there is no memory for the result
	NotFound          Code = C.VARVE_NOT_FOUND          // there is nothing of that name
	Exists            Code = C.VARVE_EXISTS             // the directory is not empty
	Foreign           Code = C.VARVE_FOREIGN            // the directory is not a repository
	VersionMismatch   Code = C.VARVE_VERSION_MISMATCH   // the format is of another version
	Locked            Code = C.VARVE_LOCKED             // another process has it open for writing
	Busy              Code = C.VARVE_BUSY               // something else is under way
	Corrupted         Code = C.VARVE_CORRUPTED          // data is damaged: see Error.Corruption
	NoSpace           Code = C.VARVE_NO_SPACE           // the disk or the quota is full
	CallFailed        Code = C.VARVE_CALL_FAILED        // a system call failed: see Error.Number
	ReadOnly          Code = C.VARVE_READ_ONLY          // the repository is open for reading
	InvalidName       Code = C.VARVE_INVALID_NAME       // malformed or taken
	AmbiguousName     Code = C.VARVE_AMBIGUOUS_NAME     // several checkpoints have it
	PlanStale         Code = C.VARVE_PLAN_STALE         // the repository changed: prune again
	LimitExceeded     Code = C.VARVE_LIMIT_EXCEEDED     // more than the format can hold
	IndexDamaged      Code = C.VARVE_INDEX_DAMAGED      // open the repository again
	Moved             Code = C.VARVE_MOVED              // the repository was moved
	Unsupported       Code = C.VARVE_UNSUPPORTED        // the guest cannot do what was asked
	SizeMismatch      Code = C.VARVE_SIZE_MISMATCH      // regions of another shape
	StateRejected     Code = C.VARVE_STATE_REJECTED     // not of functions of this package
	AnotherGuest      Code = C.VARVE_ANOTHER_GUEST      // the lineage is another guest's
	GuestFailed       Code = C.VARVE_GUEST_FAILED       // the guest failed in another way
	PoolTooSmall      Code = C.VARVE_POOL_TOO_SMALL     // more dirty pages than the pool holds
	PredecessorFailed Code = C.VARVE_PREDECESSOR_FAILED // the capture before this one failed
	AuditMissed       Code = C.VARVE_AUDIT_MISSED       // a written page was not named
	InvalidStream     Code = C.VARVE_INVALID_STREAM     // not of functions of this package
	Failed            Code = C.VARVE_FAILED             // anything else
)

var codeNames = map[Code]string{
	InvalidArgument: "invalid argument", InvalidHandle: "closed handle", InCallback: "in a callback",
	CallbackFailed: "callback failed", Cancelled: "cancelled", TimedOut: "timed out",
	Closed: "session closed", NoMemory: "no memory", NotFound: "not found", Exists: "exists",
	Foreign: "not a repository", VersionMismatch: "version mismatch", Locked: "locked", Busy: "busy",
	Corrupted: "corrupted", NoSpace: "no space", CallFailed: "system call failed",
	ReadOnly: "read-only", InvalidName: "invalid name", AmbiguousName: "ambiguous name",
	PlanStale: "stale plan", LimitExceeded: "limit exceeded", IndexDamaged: "index damaged",
	Moved: "repository moved", Unsupported: "unsupported", SizeMismatch: "size mismatch",
	StateRejected: "state rejected", AnotherGuest: "another guest", GuestFailed: "guest failed",
	PoolTooSmall: "pool too small", PredecessorFailed: "predecessor failed",
	AuditMissed: "pages missed by the dirty log", InvalidStream: "invalid stream", Failed: "failed",
}

// Error returns a few words; the sentence is in the [Error].
func (code Code) Error() string {
	if name, ok := codeNames[code]; ok {
		return "varve: " + name
	}
	return fmt.Sprintf("varve: code %d", int(code))
}

// An Error is a failure of a call of the library.
type Error struct {
	Code       Code
	Message    string      // what failed, and the remedy
	Number     int         // the errno of a system call; or 0
	Corruption *Corruption // what is damaged, if the code is Corrupted; or nil

	cause error // why the context was done
}

// A Corruption is a place where data is damaged.
type Corruption struct {
	File       string  // relative to the repository
	Offset     uint64  // of the record or block in the file
	Object     string  // what is damaged, such as "page group"
	Reason     string  // what was expected and what was found
	Disk       string  // to which the frame belongs; empty for the memory
	Checkpoint *ID     // for which it was read; or nil
	Frame      *uint64 // that cannot be read; or nil
}

// Error returns the message.
func (err *Error) Error() string {
	return "varve: " + err.Message
}

// Unwrap returns the context's error, or the [syscall.Errno] of a system call, or nil.
func (err *Error) Unwrap() error {
	if err.cause != nil {
		return err.cause
	}
	if err.Number != 0 && (err.Code == CallFailed || err.Code == NoSpace) {
		return syscall.Errno(err.Number)
	}
	return nil
}

// Is compares the code, also with the errors of [fs] that mean the same.
func (err *Error) Is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return err.Code == NotFound
	case fs.ErrExist:
		return err.Code == Exists
	case fs.ErrPermission:
		return err.Code == ReadOnly
	case fs.ErrClosed:
		return err.Code == InvalidHandle || err.Code == Closed
	}
	code, ok := target.(Code)
	return ok && code == err.Code
}

// lastError returns the failure of this thread's last call.
func lastError(code Code) error {
	err := &Error{
		Code:    code,
		Message: C.GoString(C.varve_error_message()),
		Number:  int(C.varve_error_number()),
	}
	var place C.struct_varve_corruption
	place.size = C.size_t(unsafe.Sizeof(place))
	if code == Corrupted && C.varve_error_corruption(&place) == C.VARVE_OK {
		err.Corruption = unpackCorruption(&place)
	}
	return err
}

func unpackCorruption(place *C.struct_varve_corruption) *Corruption {
	corruption := &Corruption{
		File:   C.GoString(place.file),
		Offset: uint64(place.offset),
		Object: C.GoString(place.object),
		Reason: C.GoString(place.reason),
		Disk:   C.GoString(place.disk),
	}
	if place.has_checkpoint != 0 {
		id := unpackID(place.checkpoint)
		corruption.Checkpoint = &id
	}
	if place.has_frame != 0 {
		frame := uint64(place.frame)
		corruption.Frame = &frame
	}
	return corruption
}
