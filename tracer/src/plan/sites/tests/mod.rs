//! Sites of every interpreter on this machine, of damaged ones, and of assembled snippets.

mod entries;
mod loader;
mod made;
mod parts;
mod snippets;
mod taken;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use proptest::prelude::*;

use super::*;
use crate::python::tests::runtimes;

/// Calls of `allocate_from_new_pool`, and jumps to it, in known builds, counted in a disassembler's output.
const KNOWN: [(&str, usize); 4] = [
    ("571d98e01096d5c1", 171),
    ("f9de766c3a031e07", 254),
    ("cccda113240f3ba4", 211),
    ("d41ac9e28ff414f1", 217),
];

fn count(found: &Sites, kind: ReferenceKind, wanted: fn(&Covered) -> bool) -> usize {
    let matching = found
        .references
        .iter()
        .filter(|one| one.kind == kind && wanted(&one.covered));
    matching.count()
}

#[test]
fn every_copy_of_an_allocation_has_a_site() {
    let kinds = [
        ReferenceKind::Refill,
        ReferenceKind::Allocation,
        ReferenceKind::Raw,
    ];
    for (path, data, facts) in runtimes() {
        let elf = Elf::parse(&data).unwrap();
        let path = path.display();
        let start = std::time::Instant::now();
        let found = find(&facts, &elf).unwrap();
        let took = start.elapsed();
        for reference in &found.references {
            assert!(
                !matches!(reference.covered, Covered::Unmatched(_)),
                "{path}: {reference:?}"
            );
        }
        let sites = kinds.map(|kind| count(&found, kind, |covered| matches!(covered, Covered::Site(_))));
        println!(
            "{path}: {} sites, references with one: {kinds:?} {sites:?}, {took:?}",
            found.sites.len()
        );
        let [refills, ..] = sites;
        let build_id = facts.build_id.unwrap_or_default();
        if let Some((_, calls)) = KNOWN.iter().find(|(start, _)| build_id.starts_with(start)) {
            assert_eq!(refills, *calls, "{path}");
        }
        assert!(refills >= 2, "{path}");
    }
}

/// The instructions of the function that a site is in, up to and with the site's.
fn up_to(elf: &Elf<'_>, site: &PlannedSite) -> Vec<Instruction> {
    let length = usize::try_from(site.address.get() - site.function.get()).unwrap();
    let bytes = elf.bytes_from(site.function).unwrap();
    let bytes = &bytes[..bytes.len().min(length + 15)];
    Decoder::with_ip(64, bytes, site.function.get(), DecoderOptions::NONE)
        .into_iter()
        .take_while(|instruction| instruction.ip() <= site.address.get())
        .collect()
}

/// What each role must stand on, told without the finder.
fn assert_stands_right(elf: &Elf<'_>, site: &PlannedSite) {
    let code = up_to(elf, site);
    let [before @ .., last] = code.as_slice() else {
        panic!("{site:?}")
    };
    assert_eq!(last.ip(), site.address.get(), "{site:?}: not an instruction");
    assert_eq!(elf.address_of(site.offset), Some(site.address));
    let is_equality = matches!(last.mnemonic(), Mnemonic::Je | Mnemonic::Jne);
    match site.role {
        Role::PoolAlloc | Role::PoolInit => {
            assert!(is_equality, "{site:?}");
            let compare = before
                .iter()
                .rev()
                .take(9)
                .find(|one| one.mnemonic() == Mnemonic::Cmp);
            assert!(compare.is_some(), "{site:?}");
        }
        Role::PoolTaken => assert!(is_equality, "{site:?}"),
        Role::RawMalloc | Role::RawCalloc | Role::RawRealloc => {
            assert_eq!(last.mnemonic(), Mnemonic::Jmp, "{site:?}");
        }
        Role::LibcRealloc => assert_eq!(last.mnemonic(), Mnemonic::Call, "{site:?}"),
        Role::RawResult | Role::ReallocResult => {
            let behind = u64::from(site.operand.behind);
            let call = before
                .iter()
                .rev()
                .find(|one| one.mnemonic() == Mnemonic::Call)
                .unwrap();
            assert!(behind == 0 || call.next_ip() + behind == last.ip(), "{site:?}");
        }
        _ => {}
    }
}

#[test]
fn sites_stand_on_what_their_role_says() {
    for (path, data, facts) in runtimes() {
        let elf = Elf::parse(&data).unwrap();
        let Some(found) = find(&facts, &elf) else { continue };
        for site in &found.sites {
            assert_stands_right(&elf, site);
        }
        let mut addresses: Vec<VirtAddr> = found.sites.iter().map(|site| site.address).collect();
        addresses.dedup();
        assert_eq!(
            addresses.len(),
            found.sites.len(),
            "{}: two sites in one place",
            path.display()
        );
    }
}

#[test]
fn nothing_is_found_without_call_frame_information() {
    let (_, mut data, facts) = runtimes().swap_remove(0);
    // The type of `PT_GNU_EH_FRAME`, wherever it stands in the program headers.
    let kind = 0x6474_e550_u32.to_le_bytes();
    let at = data.windows(4).position(|window| window == kind).unwrap();
    data[at..at + 4].copy_from_slice(&0x6474_0000_u32.to_le_bytes());
    let elf = Elf::parse(&data).unwrap();
    assert!(elf.functions().is_empty());
    assert_eq!(find(&facts, &elf), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Bytes of the allocator's own code are overwritten: whatever is still taken for a site looks like one.
    #[test]
    fn damaged_code_gives_no_panic_and_no_wrong_site(
        flips in proptest::collection::vec((0.0..1.0_f64, 0_u64..600, any::<u8>()), 1..12),
    ) {
        thread_local! {
            static IMAGE: (Vec<u8>, ImageFacts) = {
                let (_, data, facts) = runtimes().into_iter()
                    .filter(|(_, _, facts)| facts.version.minor > 9)
                    .min_by_key(|(_, data, _)| data.len())
                    .unwrap();
                (data, facts)
            };
        }
        IMAGE.with(|(data, facts)| {
            let mut data = data.clone();
            let functions = facts.functions.obj.iter().chain(&facts.functions.raw);
            let functions: Vec<VirtAddr> = functions.copied().collect();
            let places: Vec<_> = {
                let elf = Elf::parse(&data).unwrap();
                flips.iter().map(|(which, distance, value)| {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a random choice")]
                    let function = functions[(*which * functions.len() as f64) as usize];
                    (elf.file_offset(function.checked_add(*distance).unwrap()), *value)
                }).collect()
            };
            for (offset, value) in places {
                data[usize::try_from(offset.unwrap().get()).unwrap()] = value;
            }
            let elf = Elf::parse(&data).unwrap();
            if let Some(found) = find(facts, &elf) {
                for site in &found.sites {
                    assert_stands_right(&elf, site);
                }
            }
        });
    }
}
