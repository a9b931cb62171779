(** Checkpoints of running guests, through libvarve.

    A program that has its guest's memory in bigarrays begins a session over them, and takes
    checkpoints with the pages that were written since the last call. Calls that may take long
    release the runtime's lock. All sizes are in bytes, times in nanoseconds; a frame is an address
    in the guest divided by [page_size].

    What is opened has [close]. A finalizer closes what is dropped, at some time or never. Closing
    twice raises [Error] with the code [Invalid_handle]. *)

(** {1 Values} *)

val page_size : int
val version : unit -> string

(** The identity of a checkpoint: the digest of its manifest. *)
type id

(** 64 hexadecimal digits. *)
val id_to_string : id -> string

(** Raises [Invalid_argument] if these are not 64 hexadecimal digits. *)
val id_of_string : string -> id

type bytes_array = (char, Bigarray.int8_unsigned_elt, Bigarray.c_layout) Bigarray.Array1.t
type words_array = (int64, Bigarray.int64_elt, Bigarray.c_layout) Bigarray.Array1.t

(** {1 Errors} *)

(** What kind of failure it is; [varve.h] says more. The order is the header's. *)
type code =
  | Invalid_argument
  | Invalid_handle
  | In_callback
  | Callback_failed
  | Cancelled
  | Timed_out
  | Closed
  | No_memory
  | Not_found
  | Exists
  | Foreign
  | Version_mismatch
  | Locked
  | Busy
  | Corrupted
  | No_space
  | Call_failed
  | Read_only
  | Invalid_name
  | Ambiguous_name
  | Plan_stale
  | Limit_exceeded
  | Index_damaged
  | Moved
  | Unsupported
  | Size_mismatch
  | State_rejected
  | Another_guest
  | Guest_failed
  | Pool_too_small
  | Predecessor_failed
  | Audit_missed
  | Invalid_stream
  | Failed
  | Unknown of int  (** of a later version of the library *)

(** A place where data is damaged. *)
type corruption = {
  file : string;  (** relative to the repository *)
  offset : int;  (** of the record or block in the file *)
  what : string;  (** what is damaged, such as "page group" *)
  reason : string;  (** what was expected and what was found *)
  disk : string option;  (** to which the frame belongs; [None]: the memory *)
  checkpoint : id option;  (** for which it was read *)
  frame : int option;  (** that cannot be read *)
}

type error = {
  code : code;
  message : string;  (** what failed, and the remedy *)
  number : int;  (** the errno of a system call; or 0 *)
  corruption : corruption option;  (** if the code is [Corrupted] *)
}

(** A call failed. A name with a zero byte raises [Invalid_argument] instead. *)
exception Error of error

(** {1 Guests} *)

(** A part of a guest's memory; its size and its address are multiples of 4096. *)
type region = { guest_address : int; memory : bytes_array }

(** The pages that may have been written since the last capture or revert: all that are in a bitmap
    or in the list. A page that was written and is not named is missing from the checkpoint.
    [bitmaps] has one for each region, in their order, or none: bit n of a region is bit n modulo 64
    of word n divided by 64, as in [KVM_GET_DIRTY_LOG]. *)
type dirty = { bitmaps : words_array array; frames : int array }

(** Ends calls early, from another thread: they fail with [Cancelled]. *)
module Cancellation : sig
  type t

  val create : unit -> t
  val cancel : t -> unit
  val close : t -> unit
end

(** {1 Repositories} *)

type checkpoint = {
  id : id;
  parent : id option;  (** it may have been forgotten *)
  lineage : string;
  label : string option;
  time_nanoseconds : int;  (** when the guest was paused, since 1970 *)
  pause_nanoseconds : int;
  page_count : int;
  changed_page_count : int;  (** since the parent *)
  stored_page_count : int;
  added_byte_count : int;
  volume_count : int;  (** the memory and the disks *)
}

type volume = {
  name : string;  (** "memory", or the disk's *)
  is_disk : bool;
  byte_count : int;
  page_count : int;  (** that exist; of a disk, blocks that are not zero *)
  changed_page_count : int;
  root : string;  (** Merkle root, 32 bytes: equal for equal contents *)
  extent_byte_count : int;  (** where it ends: what is read past that is zeros *)
}

type range = { first : int; count : int }

type statistics = {
  checkpoint_count : int;
  page_count : int;  (** of all checkpoints *)
  unique_page_count : int;  (** stored *)
  logical_byte_count : int;  (** as full copies *)
  byte_count : int;  (** of all packs *)
}

type verify_report = {
  checkpoint_count : int;  (** that are whole, as far as they were read *)
  pack_count : int;
  byte_count : int;
  page_count : int;
  finding_count : int;  (** damaged places *)
  affected_checkpoint_count : int;  (** that cannot be restored bit for bit *)
}

type prune = { byte_count : int; freed_byte_count : int; copied_byte_count : int }

(** Reads ranges of one volume of a checkpoint; what does not exist reads as zeros. It remains
    usable when its repository is closed. *)
module Reader : sig
  type t

  (** Fills a bigarray from an offset; each page is verified. *)
  val read_into : t -> int -> bytes_array -> unit

  (** [read reader offset byte_count]. *)
  val read : t -> int -> int -> string

  val close : t -> unit
end

module Repository : sig
  type t

  (** Creates one in a directory that is empty or does not exist, and opens it for writing. *)
  val create : string -> t

  (** Creates one in a new directory below [parent] (by default /dev/shm), which is removed when it
      is closed: for fuzzers and tests. *)
  val create_volatile : ?parent:string -> unit -> t

  (** Opens one, by default for reading. [wait_nanoseconds] is how long to wait while another
      process is writing; -1: without limit. *)
  val open_ :
    ?writing:bool -> ?wait_nanoseconds:int -> ?cancellation:Cancellation.t -> string -> t

  (** Raises [Error] with [Busy], and closes nothing, while it has sessions. *)
  val close : t -> unit

  val statistics : t -> statistics

  (** Reads and verifies everything. Damage is counted, not raised. *)
  val verify : ?cancellation:Cancellation.t -> t -> verify_report

  (** Forgets checkpoints: all of them, or none. *)
  val forget : t -> id array -> unit

  (** Frees the space of what was forgotten. *)
  val prune : ?unused_percent_max:float -> ?cancellation:Cancellation.t -> t -> prune

  (** Lists checkpoints in order of publication; [newest]: at most so many. *)
  val checkpoints : ?lineage:string -> ?newest:int -> ?before:id -> t -> id array

  (** The checkpoint with an id or a prefix of one, of a lineage or a label; [~N]. *)
  val find : t -> string -> id

  val checkpoint : t -> id -> checkpoint

  (** Gives a checkpoint a label, or removes the one that it has. Later checkpoints of its lineage
      lose that label. *)
  val set_label : t -> id -> string option -> unit

  val volumes : t -> id -> volume list

  (** The state that the capture was given. *)
  val state : t -> id -> string

  (** [difference repository from to_]: the frames in which they differ. *)
  val difference : ?volume:string -> t -> id -> id -> range array

  (** Writes a volume, raw, from the descriptor's position on. *)
  val export :
    ?volume:string -> ?cancellation:Cancellation.t -> t -> id -> Unix.file_descr -> unit

  val reader : ?volume:string -> t -> id -> Reader.t

  (** Fills regions with a checkpoint, and returns its state. [starts_zeroed]: zero pages are
      skipped. When it fails, the regions have a part of the checkpoint. *)
  val restore : ?volume:string -> ?starts_zeroed:bool -> t -> id -> region array -> string
end

(** {1 Sessions} *)

type capture_result = {
  id : id;
  dirty_page_count : int;
  changed_page_count : int;
  stored_page_count : int;
  added_byte_count : int;
  downtime_nanoseconds : int;
}

type revert_result = {
  state : string;  (** that the capture was given *)
  written_page_count : int;
  compared_page_count : int;
}

(** A capture that has begun. *)
module Capture : sig
  type t

  (** Waits until the checkpoint is durable, by default without limit; then [Timed_out]. *)
  val wait : ?timeout_nanoseconds:int -> t -> capture_result

  (** What [Unix.select] finds readable once the capture has ended; do not read from it or close
      it. It is the capture's until [close]. *)
  val descriptor : t -> Unix.file_descr

  val cancel : t -> unit

  (** Frees it; the capture continues. *)
  val close : t -> unit
end

(** Captures one guest into one lineage, again and again. The guest must not write while [capture],
    [begin_] or [revert] runs. A session keeps its repository and its regions. *)
module Session : sig
  type t

  (** The options are those of [varve_session_options]. *)
  val create :
    ?parent:id ->
    ?pool_byte_count:int ->
    ?overlapping_captures_max:int ->
    ?worker_count:int ->
    ?compression_level:int ->
    ?audit_page_count:int ->
    ?accepts_guest_change:bool ->
    ?omits_disks:bool ->
    Repository.t ->
    string ->
    region array ->
    t

  (** Takes a checkpoint, and returns when it is durable. Without [dirty] every page is compared. *)
  val capture :
    ?label:string ->
    ?dirty:dirty ->
    ?state:string ->
    ?cancellation:Cancellation.t ->
    t ->
    capture_result

  (** Begins a checkpoint; when this returns the guest may run. *)
  val begin_ :
    ?label:string ->
    ?dirty:dirty ->
    ?state:string ->
    ?cancellation:Cancellation.t ->
    t ->
    Capture.t

  (** Puts the memory back. *)
  val revert : ?dirty:dirty -> ?cancellation:Cancellation.t -> t -> id -> revert_result

  (** The checkpoint that the next one will follow. *)
  val parent : t -> id option

  (** Cancels what has begun; does not wait. *)
  val cancel : t -> unit

  (** Waits for captures under way, which are completed. *)
  val close : t -> unit
end
