//! The declarations are those of the header, as a compiler of C reads it.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write;
use std::fs;
use std::mem::{size_of, MaybeUninit};
use std::path::PathBuf;
use std::process::Command;
use std::ptr::addr_of;
use varve_sys::*;

/// What C says: sizes, offsets and values by their names.
type Numbers = BTreeMap<String, i64>;

fn size_of_place<T>(_: *const T) -> usize {
    size_of::<T>()
}

/// Writes a line of C that prints a number.
fn ask(program: &mut String, name: &str, expression: &str) {
    writeln!(program, "printf(\"{name} %lld\\n\", (long long)({expression}));").unwrap();
}

/// Lists the structures once: for Rust's numbers, and for the program that prints those of C. The
/// pattern fails to compile when a field of a structure is not in the list.
macro_rules! structures {
    ($($kind:literal $name:ident { $($field:ident),* })*) => {
        fn structures(numbers: &mut Numbers, program: &mut String) {
            $(
                let _ = |structure: $name| { let $name { $($field: _),* } = structure; };
                let structure = format!("{}{}", $kind, stringify!($name));
                let place = MaybeUninit::<$name>::uninit();
                let base = place.as_ptr();
                numbers.insert(stringify!($name).to_string(), size_of::<$name>() as i64);
                ask(program, stringify!($name), &format!("sizeof({structure})"));
                $(
                    // SAFETY: the place of a field is computed, and not read.
                    let field = unsafe { addr_of!((*base).$field) };
                    let name = concat!(stringify!($name), ".", stringify!($field));
                    numbers.insert(name.to_string(), field as i64 - base as i64);
                    let field_name = stringify!($field);
                    ask(program, name, &format!("offsetof({structure}, {field_name})"));
                    numbers.insert(format!("{name}.size"), size_of_place(field) as i64);
                    ask(program, &format!("{name}.size"),
                        &format!("sizeof((({structure} *)0)->{field_name})"));
                )*
            )*
        }
    };
}

structures! {
    "" varve_id { bytes }
    "" varve_range { first, count }
    "struct " varve_corruption {
        size, file, offset, object, reason, disk, checkpoint, frame, has_checkpoint,
        has_frame
    }
    "struct " varve_progress { size, phase, unit, has_total, done, total }
    "struct " varve_call { size, cancellation, progress, context }
    "struct " varve_open_options { size, access, wait_nanoseconds, cancellation }
    "struct " varve_statistics {
        size, checkpoint_count, page_count, zero_page_count, unique_page_count,
        changed_page_count, logical_byte_count, byte_count, metadata_byte_count,
        abandoned_byte_count
    }
    "struct " varve_verify_options { size, depth, share, seed, finding, context }
    "struct " varve_verify_report {
        size, checkpoint_count, pack_count, byte_count, page_count, abandoned_byte_count,
        finding_count, affected_checkpoint_count
    }
    "struct " varve_prune_options { size, unused_percent_max }
    "struct " varve_prune_info {
        size, byte_count, freed_byte_count, copied_byte_count, unused_byte_count,
        leased_byte_count, dead_page_count, removed_pack_count, rewritten_pack_count
    }
    "struct " varve_selection { size, lineage, newest, before, since, until }
    "struct " varve_checkpoint {
        size, id, parent, has_parent, omits_disks, time_nanoseconds, pause_nanoseconds,
        page_count, zero_page_count, changed_page_count, stored_page_count,
        added_byte_count, volume_count, lineage, label
    }
    "struct " varve_volume {
        size, name, is_disk, block_byte_count, byte_count, page_count, zero_page_count,
        changed_page_count, root, extent_byte_count
    }
    "struct " varve_region { size, guest_address, address, descriptor, offset, byte_count }
    "struct " varve_bitmap { words, word_count }
    "struct " varve_dirty { size, bitmaps, bitmap_count, frames, frame_count }
    "struct " varve_callbacks {
        size, layout, pause, resume, copy_pages, start_dirty, take_dirty, count_dirty,
        stop_dirty, save_state, write_pages, restore_state, map_pages, disks
    }
    "struct " varve_session_options {
        size, parent, pool_byte_count, pause_budget_nanoseconds, precopy_rounds_max,
        overlapping_captures_max, worker_count, compression_level, audit_page_count,
        accepts_guest_change, omits_disks, files, disk_cut_budget_nanoseconds, keeps_disk_cut
    }
    "struct " varve_capture_input { size, label, dirty, state, state_byte_count }
    "struct " varve_capture_result {
        size, id, dirty_page_count, copied_page_count, paused_page_count,
        changed_page_count, stored_page_count, added_byte_count, request_nanoseconds,
        downtime_nanoseconds, missed_page_count, disk_nanoseconds
    }
    "struct " varve_revert_result {
        size, written_page_count, compared_page_count, request_nanoseconds,
        downtime_nanoseconds, written_block_count
    }
    "struct " varve_restore_options { size, volume, starts_zeroed }
    "struct " varve_restore_result { size, written_page_count, read_byte_count }
    "struct " varve_file { size, name, path, block_byte_count }
    "struct " varve_files { size, files, count, state_directory, clone_directory }
    "struct " varve_disk { size, name, byte_count, block_byte_count }
    "struct " varve_disk_callbacks {
        size, list, prepare, cut, changed, stored, read, release, write, resize
    }
    "struct " varve_lost { disk, pages }
    "struct " varve_loss { size, id, lineage, label, reason, lost, lost_count }
    "struct " varve_repair_options { size, wait_nanoseconds, finding, loss, context }
    "struct " varve_repair_info {
        size, finding_count, whole_checkpoint_count, lost_checkpoint_count,
        rewritten_pack_count, removed_pack_count, missing_pack_count, moved_file_count,
        saved_page_count, copied_byte_count, kept_byte_count
    }
}

macro_rules! constants {
    ($($name:ident)*) => {
        fn constants(numbers: &mut Numbers, program: &mut String) {
            $(
                numbers.insert(stringify!($name).to_string(), i64::from($name));
                ask(program, stringify!($name), stringify!($name));
            )*
        }
    };
}

constants! {
    VARVE_OK VARVE_INVALID_ARGUMENT VARVE_INVALID_HANDLE
    VARVE_IN_CALLBACK VARVE_CALLBACK_FAILED VARVE_CANCELLED
    VARVE_TIMED_OUT VARVE_CLOSED VARVE_NO_MEMORY
    VARVE_NOT_FOUND VARVE_EXISTS VARVE_FOREIGN
    VARVE_VERSION_MISMATCH VARVE_LOCKED VARVE_BUSY
    VARVE_CORRUPTED VARVE_NO_SPACE VARVE_CALL_FAILED
    VARVE_READ_ONLY VARVE_INVALID_NAME VARVE_AMBIGUOUS_NAME
    VARVE_PLAN_STALE VARVE_LIMIT_EXCEEDED VARVE_INDEX_DAMAGED
    VARVE_MOVED VARVE_UNSUPPORTED VARVE_SIZE_MISMATCH
    VARVE_STATE_REJECTED VARVE_ANOTHER_GUEST VARVE_GUEST_FAILED
    VARVE_POOL_TOO_SMALL VARVE_PREDECESSOR_FAILED VARVE_AUDIT_MISSED
    VARVE_INVALID_STREAM VARVE_FAILED VARVE_PAGES
    VARVE_BYTES VARVE_PACKS VARVE_CHECKPOINTS
    VARVE_READING VARVE_WRITING VARVE_DEPTH_FULL
    VARVE_DEPTH_STRUCTURE VARVE_DEPTH_SAMPLE VARVE_FORMAT_RAW
    VARVE_FORMAT_ELF VARVE_FORMAT_LIBXC VARVE_FORMAT_XL
    VARVE_DIRTY_UNKNOWN VARVE_LEVEL_STORED VARVE_BLOCKS_UNKNOWN
    VARVE_REMEDY_REWRITTEN VARVE_REMEDY_REMOVED VARVE_REMEDY_MOVED
    VARVE_REMEDY_RENAMED VARVE_REMEDY_NAMED VARVE_REMEDY_REBUILT
    VARVE_REMEDY_FORGOTTEN
}

/// The flags that pkg-config gave to the build script.
fn flags() -> Vec<&'static str> {
    env!("VARVE_CFLAGS").split_whitespace().collect()
}

/// Compiles a program of C against the header, and returns what it prints.
fn run_c(statements: &str) -> String {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = directory.join("layout.c");
    let program = directory.join("layout");
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <varve.h>\nint main(void) {{\n\
         {statements}return 0;\n}}\n"
    );
    fs::write(&source, text).unwrap();
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_string());
    let status =
        Command::new(compiler).args(flags()).arg("-o").arg(&program).arg(&source).status().unwrap();
    assert!(status.success(), "the compiler of C refused a name of ours");
    let output = Command::new(program).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn structures_and_constants_are_those_of_the_header() {
    let (mut numbers, mut statements) = (Numbers::new(), String::new());
    structures(&mut numbers, &mut statements);
    constants(&mut numbers, &mut statements);
    let mut of_c = Numbers::new();
    for line in run_c(&statements).lines() {
        let (name, number) = line.split_once(' ').unwrap();
        of_c.insert(name.to_string(), number.parse().unwrap());
    }
    assert!(numbers.len() > 300, "{} numbers were compared", numbers.len());
    for (name, number) in &numbers {
        assert_eq!(of_c.get(name), Some(number), "{name}, of C and of Rust");
    }
    assert_eq!(numbers.len(), of_c.len());
}

/// The text of `varve.h`, and of the headers that it includes, without comments.
fn header() -> String {
    let directory = flags()
        .iter()
        .find_map(|flag| flag.strip_prefix("-I"))
        .map_or_else(|| PathBuf::from("/usr/include"), PathBuf::from);
    let text = ["varve.h", "varve_guest.h", "varve_repair.h"]
        .map(|name| fs::read_to_string(directory.join(name)).unwrap())
        .concat();
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The names before a parenthesis that are followed by others than those of a callback.
fn functions(text: &str, start: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (position, _) in text.match_indices(start) {
        let rest = &text[position + start.len() - "varve_".len()..];
        let name: String =
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let parameters = match rest[name.len()..].strip_prefix('(') {
            Some(parameters) => parameters,
            None => continue,
        };
        let parameters = parameters[..parameters.find(')').unwrap()].trim();
        let count = match parameters.trim_end_matches(',') {
            "" | "void" => 0,
            list => list.split(',').count(),
        };
        found.push((name, count));
    }
    found.sort();
    found
}

#[test]
fn functions_and_their_parameters_are_those_of_the_header() {
    let header = header().replace('*', " ");
    let of_c = functions(&header, " varve_");
    let of_rust = functions(include_str!("../src/lib.rs"), "pub fn varve_");
    assert!(of_rust.len() > 40, "{} functions", of_rust.len());
    assert_eq!(of_c, of_rust);
}

/// Each constant, and each structure, of the header is in the lists above.
#[test]
fn nothing_of_the_header_is_missing() {
    let (mut numbers, mut statements) = (Numbers::new(), String::new());
    structures(&mut numbers, &mut statements);
    constants(&mut numbers, &mut statements);
    let header = header();
    let names = header
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .collect::<std::collections::BTreeSet<_>>();
    let macros = ["VARVE_H", "VARVE_GUEST_H", "VARVE_REPAIR_H", "VARVE_VERSION"];
    for name in names.iter().filter(|name| name.starts_with("VARVE_") && !macros.contains(name)) {
        assert!(numbers.contains_key(*name), "the constant {name}");
    }
    let mut count = 0;
    for line in header.lines().filter(|line| line.ends_with('{')) {
        let words: Vec<_> = line.trim_start_matches("typedef ").split_whitespace().collect();
        if words[0] == "struct" {
            assert!(numbers.contains_key(words[1]), "the structure {}", words[1]);
            count += 1;
        }
    }
    assert!(count > 20, "{count} structures");
}
