(* The binding, with memory compared. *)

open Varve

let failures = ref 0

let check name truth =
  if not truth then (
    incr failures;
    Printf.printf "FAILED: %s\n%!" name)

(* Calls a function that must raise Error with a code. *)
let expect name code function_ =
  match function_ () with
  | _ -> check (name ^ ": it did not fail") false
  | exception Error error ->
      check (name ^ ": " ^ error.message) (error.code = code && error.message <> "")

(* ---- A machine with two regions of memory, and a bitmap for each ---- *)

type machine = { memories : bytes_array array; bitmaps : words_array array }

let new_memory page_count =
  let memory = Bigarray.(Array1.create char c_layout (page_count * page_size)) in
  Bigarray.Array1.fill memory '\000';
  memory

let new_bitmap word_count =
  let bitmap = Bigarray.(Array1.create int64 c_layout word_count) in
  Bigarray.Array1.fill bitmap 0L;
  bitmap

let new_machine () =
  { memories = [| new_memory 100; new_memory 30 |]; bitmaps = [| new_bitmap 2; new_bitmap 1 |] }

let regions machine =
  [|
    { guest_address = 0; memory = machine.memories.(0) };
    { guest_address = 200 * page_size; memory = machine.memories.(1) };
  |]

let write machine region page =
  for offset = page * page_size to ((page + 1) * page_size) - 1 do
    machine.memories.(region).{offset} <- Char.chr (Random.int 256)
  done;
  let bitmap = machine.bitmaps.(region) in
  bitmap.{page / 64} <- Int64.logor bitmap.{page / 64} (Int64.shift_left 1L (page mod 64))

let run machine =
  for _ = 1 to 10 do
    write machine 0 (Random.int 100);
    write machine 1 (Random.int 30)
  done

(* Calls a function with the dirty pages, and clears them. *)
let with_dirty machine function_ =
  let result = function_ { bitmaps = machine.bitmaps; frames = [||] } in
  Array.iter (fun bitmap -> Bigarray.Array1.fill bitmap 0L) machine.bitmaps;
  result

let text memory = String.init (Bigarray.Array1.dim memory) (Bigarray.Array1.get memory)
let copy machine = Array.map text machine.memories

(* ---- Directories ---- *)

let rec remove path =
  if Sys.is_directory path then (
    Array.iter (fun name -> remove (Filename.concat path name)) (Sys.readdir path);
    Unix.rmdir path)
  else Sys.remove path

let with_directory function_ =
  let path = Filename.temp_file "varve-ocaml" "" in
  Sys.remove path;
  Unix.mkdir path 0o700;
  Fun.protect ~finally:(fun () -> remove path) (fun () -> function_ path)

let with_store function_ =
  with_directory (fun directory ->
      let path = Filename.concat directory "store" in
      let repository = Repository.create path in
      function_ path repository)

(* ---- The tests ---- *)

let check_branch repository machine id copy =
  let session =
    Session.create ~parent:id ~worker_count:1 repository "branch" (regions machine)
  in
  ignore (Session.revert session id);
  write machine 1 4;
  let dirty = { bitmaps = [||]; frames = [| 204 |] } in
  let branched = (Session.capture ~dirty session).id in
  Session.close session;
  let checkpoint = Repository.checkpoint repository branched in
  check "parent" (checkpoint.parent = Some id);
  check "lineage" (checkpoint.lineage = "branch" && checkpoint.label = None);
  let ranges = Repository.difference repository id branched in
  check "difference" (ranges = [| { first = 204; count = 1 } |]);
  let reader = Repository.reader repository id in
  let page = String.sub copy.(1) (4 * page_size) page_size in
  check "reader" (Reader.read reader (204 * page_size) page_size = page);
  let whole = new_memory 100 in
  Reader.read_into reader 0 whole;
  check "reader into memory" (text whole = copy.(0));
  Reader.close reader;
  expect "a closed reader" Invalid_handle (fun () -> Reader.read reader 0 1)

let check_lists repository ids copies =
  let listed = Repository.checkpoints ~lineage:"machine" repository in
  check "list" (listed = ids);
  let some = Repository.checkpoints ~lineage:"machine" ~newest:2 ~before:ids.(5) repository in
  check "selection" (some = Array.sub ids 3 2);
  let checkpoint = Repository.checkpoint repository ids.(9) in
  check "label" (checkpoint.label = Some "label-9" && checkpoint.id = ids.(9));
  let age = Unix.gettimeofday () -. (float checkpoint.time_nanoseconds /. 1e9) in
  check "time" (age >= 0. && age < 3600.);
  (match Repository.volumes repository ids.(0) with
  | [ volume ] ->
      check "volume" (volume.name = "memory" && volume.page_count = 130);
      check "extent" (volume.extent_byte_count = 230 * page_size)
  | _ -> check "volumes" false);
  Repository.set_label repository ids.(16) (Some "given-later");
  check "label" (Repository.find repository "given-later" = ids.(16));
  Repository.set_label repository ids.(16) None;
  check "no label" ((Repository.checkpoint repository ids.(16)).label = None);
  check "statistics" ((Repository.statistics repository).checkpoint_count = 21);
  with_directory (fun directory ->
      let path = Filename.concat directory "export" in
      let file = Unix.openfile path [ Unix.O_RDWR; Unix.O_CREAT ] 0o600 in
      Repository.export repository ids.(7) file;
      Unix.close file;
      let channel = open_in_bin path in
      seek_in channel (200 * page_size);
      check "export" (really_input_string channel (30 * page_size) = copies.(7).(1));
      close_in channel);
  Repository.forget repository (Array.sub ids 0 15);
  check "prune" ((Repository.prune ~unused_percent_max:0. repository).freed_byte_count > 0);
  let report = Repository.verify repository in
  check "verify" (report.checkpoint_count = 6 && report.finding_count = 0)

let captures_reverts_and_restores () =
  with_store (fun _ repository ->
      let machine = new_machine () in
      let session = Session.create repository "machine" (regions machine) in
      check "no parent" (Session.parent session = None);
      let take number =
        run machine;
        let label = Printf.sprintf "label-%d" number and state = Printf.sprintf "state %d" number in
        let result =
          with_dirty machine (fun dirty -> Session.capture ~label ~dirty ~state session)
        in
        check "changed pages"
          (number = 0 || (result.changed_page_count > 0 && result.changed_page_count <= 20));
        Gc.compact ();
        (result.id, copy machine)
      in
      let taken = Array.init 20 take in
      let ids = Array.map fst taken and copies = Array.map snd taken in
      check "parent of the next" (Session.parent session = Some ids.(19));
      List.iter
        (fun number ->
          run machine;
          let reverted =
            with_dirty machine (fun dirty -> Session.revert ~dirty session ids.(number))
          in
          check "reverted memory" (copy machine = copies.(number));
          check "reverted state" (reverted.state = Printf.sprintf "state %d" number))
        [ 3; 19; 0; 11 ];
      Session.close session;
      let other = new_machine () in
      let state = Repository.restore ~starts_zeroed:true repository ids.(7) (regions other) in
      check "restored memory" (copy other = copies.(7));
      check "restored state" (state = "state 7" && Repository.state repository ids.(7) = state);
      List.iter
        (fun name -> check name (Repository.find repository name = ids.(7)))
        [ "label-7"; "machine~12"; String.sub (id_to_string ids.(7)) 0 16 ];
      check_branch repository machine ids.(7) copies.(7);
      check_lists repository ids copies;
      Repository.close repository)

let a_capture_that_has_begun () =
  let repository = Repository.create_volatile () in
  let machine = new_machine () in
  let session = Session.create repository "machine" (regions machine) in
  run machine;
  let capture = Session.begin_ session in
  let expected = copy machine in
  run machine;
  let readable, _, _ = Unix.select [ Capture.descriptor capture ] [] [] 60. in
  check "readable" (List.length readable = 1);
  let result = Capture.wait ~timeout_nanoseconds:0 capture in
  check "the same result" (Capture.wait capture = result);
  Capture.close capture;
  expect "a closed capture" Invalid_handle (fun () -> Capture.wait capture);
  let other = new_machine () in
  ignore (Repository.restore repository result.id (regions other));
  check "begun memory" (copy other = expected);
  Session.close session;
  Repository.close repository

let failures_raise () =
  expect "a missing repository" Not_found (fun () -> Repository.open_ "/missing");
  with_store (fun path repository ->
      let machine = new_machine () in
      expect "an existing one" Exists (fun () -> Repository.create path);
      (match Repository.open_ ~writing:true ~wait_nanoseconds:1_000_000 path with
      | _ -> check "two writers" false
      | exception Error { code; _ } -> check "a second writer" (code = Busy || code = Locked));
      let begin_session ?compression_level name regions =
        Session.create ?compression_level repository name regions
      in
      expect "a name" Invalid_name (fun () -> begin_session "-" (regions machine));
      expect "a level" Invalid_argument (fun () ->
          begin_session ~compression_level:99 "machine" (regions machine));
      (match Repository.find repository "a\000b" with
      | _ -> check "a zero byte" false
      | exception Stdlib.Invalid_argument _ -> ());
      let session = begin_session "machine" (regions machine) in
      let capture bitmaps () = Session.capture ~dirty:{ bitmaps; frames = [||] } session in
      expect "a short bitmap" Invalid_argument (capture [| new_bitmap 1; new_bitmap 1 |]);
      expect "a missing bitmap" Invalid_argument (capture [| new_bitmap 2 |]);
      expect "an open session" Busy (fun () -> Repository.close repository);
      let id = (Session.capture session).id in
      expect "another shape" Size_mismatch (fun () ->
          Repository.restore repository id (Array.sub (regions machine) 0 1));
      Session.close session;
      expect "a closed session" Invalid_handle (fun () -> Session.capture session);
      expect "closing twice" Invalid_handle (fun () -> Session.close session);
      expect "an unknown name" Not_found (fun () -> Repository.find repository "nothing");
      Repository.close repository;
      expect "a closed repository" Invalid_handle (fun () -> Repository.statistics repository);
      let reading = Repository.open_ path in
      expect "for reading" Read_only (fun () -> Repository.forget reading [| id |]);
      Repository.close reading)

let damage_says_where () =
  with_store (fun path repository ->
      let machine = new_machine () in
      run machine;
      let session = Session.create repository "machine" (regions machine) in
      let id = (Session.capture session).id in
      Session.close session;
      Repository.close repository;
      let pack = Filename.concat path "packs/00000001.pack" in
      let file = Unix.openfile pack [ Unix.O_RDWR ] 0 in
      ignore (Unix.lseek file 9000 Unix.SEEK_SET);
      check "written" (Unix.write_substring file "damaged!" 0 8 = 8);
      Unix.close file;
      let repository = Repository.open_ path in
      let report = Repository.verify repository in
      check "findings" (report.finding_count > 0 && report.affected_checkpoint_count = 1);
      (match Repository.restore repository id (regions machine) with
      | _ -> check "damage was restored" false
      | exception Error { code; corruption = Some corruption; _ } ->
          check "corrupted" (code = Corrupted);
          check "file" (corruption.file = "packs/00000001.pack");
          check "checkpoint" (corruption.checkpoint = Some id);
          check "reason" (corruption.reason <> "" && corruption.what <> "")
      | exception Error _ -> check "no place" false);
      Repository.close repository)

let cancellation_and_threads () =
  let repository = Repository.create_volatile () in
  let machine = new_machine () in
  let session = Session.create repository "machine" (regions machine) in
  let id = (Session.capture session).id in
  let cancellation = Cancellation.create () in
  Cancellation.cancel cancellation;
  expect "a cancelled call" Cancelled (fun () -> Repository.verify ~cancellation repository);
  Cancellation.close cancellation;
  let work () =
    for _ = 1 to 10 do
      let reader = Repository.reader repository id in
      check "a page" (String.length (Reader.read reader 0 page_size) = page_size);
      ignore (Session.capture ~dirty:{ bitmaps = [||]; frames = [||] } session);
      Gc.full_major ()
    done
  in
  List.iter Thread.join (List.init 4 (fun _ -> Thread.create work ()));
  Session.close session;
  Repository.close repository

(* A thread waits for the lock of a repository, and this one ends the wait: the runtime's lock is
   free meanwhile. *)
let blocking_calls_release_the_lock () =
  with_store (fun path repository ->
      let cancellation = Cancellation.create () in
      let code = ref Failed in
      let wait () =
        match Repository.open_ ~writing:true ~wait_nanoseconds:(-1) ~cancellation path with
        | _ -> ()
        | exception Error error -> code := error.code
      in
      let thread = Thread.create wait () in
      Thread.delay 0.05;
      Cancellation.cancel cancellation;
      Thread.join thread;
      check "the wait was cancelled" (!code = Cancelled);
      Repository.close repository)

(* Sessions that are dropped are closed before their repository: its directory is removed. *)
let what_is_dropped_is_closed () =
  with_directory (fun parent ->
      let drop () =
        let repository = Repository.create_volatile ~parent () in
        let session = Session.create repository "machine" (regions (new_machine ())) in
        ignore (Session.capture session);
        ignore (Repository.reader repository (Repository.find repository "machine"))
      in
      (Sys.opaque_identity drop) ();
      check "it exists" (Array.length (Sys.readdir parent) > 0);
      for _ = 1 to 5 do
        Gc.full_major ()
      done;
      check "it was removed" (Array.length (Sys.readdir parent) = 0))

let ids_as_text () =
  let digits = String.concat "" (List.init 32 (fun _ -> "ab")) in
  check "id" (id_to_string (id_of_string digits) = digits);
  List.iter
    (fun text ->
      match id_of_string text with
      | _ -> check ("parsed: " ^ text) false
      | exception Stdlib.Invalid_argument _ -> ())
    [ ""; "ab"; String.make 64 'z'; String.concat "" (List.init 32 (fun _ -> "+a")) ];
  check "version" (version () <> "")

let () =
  let seed = match Sys.getenv_opt "VARVE_SEED" with Some seed -> int_of_string seed | None -> 1 in
  Random.init seed;
  List.iter
    (fun (name, test) ->
      test ();
      Printf.printf "%s\n%!" name)
    [
      ("captures, reverts and restores", captures_reverts_and_restores);
      ("a capture that has begun", a_capture_that_has_begun);
      ("failures raise", failures_raise);
      ("damage says where", damage_says_where);
      ("cancellation and threads", cancellation_and_threads);
      ("blocking calls release the lock", blocking_calls_release_the_lock);
      ("what is dropped is closed", what_is_dropped_is_closed);
      ("ids as text", ids_as_text);
    ];
  if !failures > 0 then (
    Printf.printf "failed: %d, seed %d\n" !failures seed;
    exit 1)
