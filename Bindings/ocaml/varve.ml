let page_size = 4096

external version : unit -> string = "varve_ml_version"

type id = string

let id_to_string id =
  let digits byte = Printf.sprintf "%02x" (Char.code byte) in
  String.concat "" (List.map digits (List.of_seq (String.to_seq id)))

let id_of_string text =
  let is_digit = function '0' .. '9' | 'a' .. 'f' | 'A' .. 'F' -> true | _ -> false in
  let are_digits = Seq.fold_left (fun all c -> all && is_digit c) true (String.to_seq text) in
  if String.length text <> 64 || not are_digits then
    invalid_arg "Varve.id_of_string: an id has 64 hexadecimal digits";
  String.init 32 (fun index -> Char.chr (int_of_string ("0x" ^ String.sub text (index * 2) 2)))

type bytes_array = (char, Bigarray.int8_unsigned_elt, Bigarray.c_layout) Bigarray.Array1.t
type words_array = (int64, Bigarray.int64_elt, Bigarray.c_layout) Bigarray.Array1.t

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
  | Unknown of int

type corruption = {
  file : string;
  offset : int;
  what : string;
  reason : string;
  disk : string option;
  checkpoint : id option;
  frame : int option;
}

type error = {
  code : code;
  message : string;
  number : int;
  corruption : corruption option;
}

exception Error of error

let () =
  Callback.register_exception "varve.error"
    (Error { code = Failed; message = ""; number = 0; corruption = None });
  Printexc.register_printer (function
    | Error error -> Some ("Varve.Error: " ^ error.message)
    | _ -> None)

type region = { guest_address : int; memory : bytes_array }

type dirty = { bitmaps : words_array array; frames : int array }

module Cancellation = struct
  type t

  external create : unit -> t = "varve_ml_cancellation_create"
  external cancel : t -> unit = "varve_ml_cancellation_cancel"
  external close : t -> unit = "varve_ml_cancellation_free"
end

type checkpoint = {
  id : id;
  parent : id option;
  lineage : string;
  label : string option;
  time_nanoseconds : int;
  pause_nanoseconds : int;
  page_count : int;
  changed_page_count : int;
  stored_page_count : int;
  added_byte_count : int;
  volume_count : int;
}

type volume = {
  name : string;
  is_disk : bool;
  byte_count : int;
  page_count : int;
  changed_page_count : int;
  root : string;
  extent_byte_count : int;
}

type range = { first : int; count : int }

type statistics = {
  checkpoint_count : int;
  page_count : int;
  unique_page_count : int;
  logical_byte_count : int;
  byte_count : int;
}

type verify_report = {
  checkpoint_count : int;
  pack_count : int;
  byte_count : int;
  page_count : int;
  finding_count : int;
  affected_checkpoint_count : int;
}

type prune = { byte_count : int; freed_byte_count : int; copied_byte_count : int }

module Reader = struct
  type t

  external read_into : t -> int -> bytes_array -> unit = "varve_ml_reader_read"
  external close : t -> unit = "varve_ml_reader_free"

  let read reader offset byte_count =
    let place = Bigarray.(Array1.create char c_layout byte_count) in
    read_into reader offset place;
    String.init byte_count (Bigarray.Array1.get place)
end

module Repository = struct
  type t

  external create_raw : string -> bool -> t = "varve_ml_repository_create"

  external open_raw : string -> bool -> int -> Cancellation.t option -> t
    = "varve_ml_repository_open"

  external close : t -> unit = "varve_ml_repository_free"
  external statistics : t -> statistics = "varve_ml_statistics"
  external verify_raw : t -> Cancellation.t option -> verify_report = "varve_ml_verify"
  external forget : t -> id array -> unit = "varve_ml_forget"
  external prune_raw : t -> float -> Cancellation.t option -> prune = "varve_ml_prune"
  external list_raw : t -> string option -> int -> id option -> id array = "varve_ml_checkpoints"
  external find : t -> string -> id = "varve_ml_find"
  external checkpoint : t -> id -> checkpoint = "varve_ml_checkpoint"
  external set_label : t -> id -> string option -> unit = "varve_ml_set_label"
  external volume : t -> id -> int -> volume = "varve_ml_volume"
  external state : t -> id -> string = "varve_ml_state"
  external difference_raw : t -> id -> id -> string option -> range array = "varve_ml_difference"

  external export_raw : t -> id -> string option -> Unix.file_descr -> Cancellation.t option -> unit
    = "varve_ml_export"

  external reader_raw : t -> id -> string option -> Reader.t = "varve_ml_reader_open"

  external restore_raw : t -> id -> region array -> string option -> bool -> string
    = "varve_ml_restore"

  let create path = create_raw path false
  let create_volatile ?(parent = "/dev/shm") () = create_raw parent true

  let open_ ?(writing = false) ?(wait_nanoseconds = 0) ?cancellation path =
    open_raw path writing wait_nanoseconds cancellation

  let verify ?cancellation repository = verify_raw repository cancellation

  let prune ?(unused_percent_max = 5.) ?cancellation repository =
    prune_raw repository unused_percent_max cancellation

  let checkpoints ?lineage ?(newest = 0) ?before repository =
    list_raw repository lineage newest before

  let volumes repository id =
    List.init (checkpoint repository id).volume_count (volume repository id)

  let difference ?volume repository from to_ = difference_raw repository from to_ volume

  let export ?volume ?cancellation repository id file =
    export_raw repository id volume file cancellation

  let reader ?volume repository id = reader_raw repository id volume

  let restore ?volume ?(starts_zeroed = false) repository id regions =
    restore_raw repository id regions volume starts_zeroed
end

type capture_result = {
  id : id;
  dirty_page_count : int;
  changed_page_count : int;
  stored_page_count : int;
  added_byte_count : int;
  downtime_nanoseconds : int;
}

type revert_result = {
  state : string;
  written_page_count : int;
  compared_page_count : int;
}

module Capture = struct
  type t

  external wait_raw : t -> int -> capture_result = "varve_ml_capture_wait"
  external descriptor : t -> Unix.file_descr = "varve_ml_capture_descriptor"
  external cancel : t -> unit = "varve_ml_capture_cancel"
  external close : t -> unit = "varve_ml_capture_free"

  let wait ?(timeout_nanoseconds = -1) capture = wait_raw capture timeout_nanoseconds
end

module Session = struct
  type handle

  (* The library has the addresses of the regions until the session is closed: they are kept here,
     and so is the repository, which can only be closed after the session. *)
  type t = { handle : handle; repository : Repository.t; regions : region array }

  type options = {
    parent : id option;
    pool_byte_count : int;
    overlapping_captures_max : int;
    worker_count : int;
    compression_level : int;
    audit_page_count : int;
    accepts_guest_change : bool;
    omits_disks : bool;
  }

  type input = { label : string option; dirty : dirty option; state : string }

  external create_raw : Repository.t -> string -> region array -> options -> handle
    = "varve_ml_session_open"

  external capture_raw : handle -> input -> Cancellation.t option -> capture_result
    = "varve_ml_session_capture"

  external begin_raw : handle -> input -> Cancellation.t option -> Capture.t
    = "varve_ml_session_begin"

  external revert_raw : handle -> id -> dirty option -> Cancellation.t option -> revert_result
    = "varve_ml_session_revert"

  external parent_raw : handle -> id = "varve_ml_session_parent"
  external cancel_raw : handle -> unit = "varve_ml_session_cancel"
  external close_raw : handle -> unit = "varve_ml_session_free"

  let close session =
    close_raw session.handle;
    ignore (Sys.opaque_identity session)

  (* Runs before the finalizers of what the session refers to: regions and repository are there. *)
  let finish session = try close session with Error _ -> ()

  let create ?parent ?(pool_byte_count = 0) ?(overlapping_captures_max = 0) ?(worker_count = 0)
      ?(compression_level = 0) ?(audit_page_count = 0) ?(accepts_guest_change = false)
      ?(omits_disks = false) repository lineage regions =
    let regions = Array.copy regions in
    let options =
      {
        parent;
        pool_byte_count;
        overlapping_captures_max;
        worker_count;
        compression_level;
        audit_page_count;
        accepts_guest_change;
        omits_disks;
      }
    in
    let handle = create_raw repository lineage regions options in
    let session = { handle; repository; regions } in
    Gc.finalise finish session;
    session

  (* Keeps a session until a call of it has returned. *)
  let during session function_ =
    let result = function_ session.handle in
    ignore (Sys.opaque_identity (session.repository, session.regions));
    result

  let capture ?label ?dirty ?(state = "") ?cancellation session =
    during session (fun handle -> capture_raw handle { label; dirty; state } cancellation)

  let begin_ ?label ?dirty ?(state = "") ?cancellation session =
    during session (fun handle -> begin_raw handle { label; dirty; state } cancellation)

  let revert ?dirty ?cancellation session id =
    during session (fun handle -> revert_raw handle id dirty cancellation)

  let parent session =
    during session (fun handle ->
        try Some (parent_raw handle) with Error { code = Not_found; _ } -> None)

  let cancel session = during session cancel_raw
end
