//! Reads real interpreters, and damaged copies of a small real file.

use proptest::prelude::*;

use super::*;

fn read(path: &str) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

fn this_binary() -> Vec<u8> {
    std::fs::read("/proc/self/exe").unwrap()
}

/// Uses everything there is; the point is that it comes back.
fn exercise(data: &[u8]) {
    let Ok(elf) = Elf::parse(data) else { return };
    let _ = (elf.needed(), elf.run_path(), elf.build_id());
    let _ = elf.exported("_PyRuntime");
    let _ = elf.local(["main", "_start"]);
    for segment in elf.segments().iter().take(4) {
        let start = segment.address;
        let _ = (
            elf.pointer_at(start),
            elf.call_target(start),
            elf.text(start, 64),
            elf.file_offset(start),
        );
    }
}

#[test]
fn a_file_is_told_by_its_header() {
    assert_eq!(Elf::parse(b"#!/bin/sh\n").unwrap_err(), ElfError::NotElf);
    assert_eq!(
        Elf::parse(b"\x7fELF\x01\x01rest").unwrap_err(),
        ElfError::NotElf64
    );
    let mut data = this_binary();
    *data.get_mut(18).unwrap() = 183;
    assert_eq!(Elf::parse(&data).unwrap_err(), ElfError::Machine { machine: 183 });
}

#[test]
fn this_test_binary_has_a_build_id_and_its_own_addresses() {
    let data = this_binary();
    let elf = Elf::parse(&data).unwrap();
    assert_eq!(elf.kind(), ImageKind::PositionIndependent);
    assert!(elf.needed().contains(&"libc.so.6"), "{:?}", elf.needed());
    let [local] = elf.local(["main"]);
    let main = local.unwrap().address;
    assert!(elf.is_code(main));
    let offset = elf.file_offset(main).unwrap();
    assert_eq!(elf.address_of(offset), Some(main));
}

#[test]
fn plt_stubs_lead_to_names_and_symbols_to_addresses() {
    let Some(data) = read("/usr/bin/python3.11") else {
        println!("skipped: no /usr/bin/python3.11");
        return;
    };
    let elf = Elf::parse(&data).unwrap();
    assert_eq!(elf.kind(), ImageKind::Executable);
    assert_eq!(elf.exported("malloc"), None, "imported, not defined");
    let runtime = elf.exported("_PyRuntime").unwrap();
    assert!(runtime.size > 1024);
    // PyMem_RawFree ends in `jmp free@plt`, right behind the guard on the table's slot.
    let free = elf.exported("PyMem_RawFree").unwrap().address;
    let code = elf.bytes(free, 64).unwrap();
    let mut decoder = Decoder::with_ip(64, code, free.get(), iced_x86::DecoderOptions::NONE);
    let jump = decoder
        .iter()
        .find(iced_x86::Instruction::is_jmp_short_or_near)
        .unwrap();
    assert_eq!(
        elf.call_target(VirtAddr(jump.near_branch_target())),
        Pointer::Import("free")
    );
}

use iced_x86::Decoder;

fn small_file() -> Vec<u8> {
    read("/bin/true").or_else(|| read("/usr/bin/true")).unwrap()
}

proptest! {
    #[test]
    fn a_truncated_file_never_panics(cut in 0.0_f64..1.0) {
        let data = small_file();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a random position")]
        let length = (data.len() as f64 * cut) as usize;
        exercise(data.get(..length).unwrap());
    }

    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..40)) {
        let mut data = small_file();
        for (place, value) in flips {
            if let Some(byte) = data.get_mut(place) {
                *byte = value;
            }
        }
        exercise(&data);
    }
}
