//! Plans for every interpreter on this machine.

use iced_x86::{Decoder, DecoderOptions, FlowControl};

use super::*;
use crate::python::tests::runtimes;

/// The roles of probes on whole functions.
const FUNCTION_ROLES: [Role; 9] = [
    Role::ObjMalloc,
    Role::ObjCalloc,
    Role::ObjRealloc,
    Role::ObjFree,
    Role::RawMalloc,
    Role::RawCalloc,
    Role::RawRealloc,
    Role::RawFree,
    Role::CodeDealloc,
];

fn check(visit: impl Fn(&str, &ImageFacts, &Elf<'_>, &Plan)) {
    for (path, data, facts) in runtimes() {
        let elf = Elf::parse(&data).unwrap();
        visit(
            &path.to_string_lossy(),
            &facts,
            &elf,
            &function_sites(&facts, &elf),
        );
    }
}

#[test]
fn every_role_has_one_site_in_its_function() {
    check(|path, _, elf, plan| {
        let roles: Vec<Role> = plan.sites.iter().map(|site| site.role).collect();
        assert_eq!(roles, FUNCTION_ROLES, "{path}: {:?}", plan.notes);
        for site in &plan.sites {
            assert_eq!(elf.address_of(site.offset), Some(site.address), "{path}");
            let skipped = site.address.get() - site.function.get();
            match site.placement {
                Placement::Emulated { skipped_bytes } => assert_eq!(u64::from(skipped_bytes), skipped),
                Placement::SingleStep => assert_eq!(skipped, 0),
            }
        }
    });
}

#[test]
fn a_site_is_an_instruction_that_a_straight_run_from_the_entry_meets() {
    check(|path, _, elf, plan| {
        for site in &plan.sites {
            let code = elf.bytes(site.function, 64).unwrap();
            let mut decoder = Decoder::with_ip(64, code, site.function.get(), DecoderOptions::NONE);
            for instruction in &mut decoder {
                if instruction.ip() >= site.address.get() {
                    assert_eq!(instruction.ip(), site.address.get(), "{path}: {site:?}");
                    break;
                }
                assert_eq!(instruction.flow_control(), FlowControl::Next, "{path}: {site:?}");
            }
        }
    });
}

#[test]
fn frees_always_stand_on_an_emulated_instruction() {
    check(|path, _, _, plan| {
        for site in plan.sites.iter().filter(|site| site.half == Half::EntryOnly) {
            assert!(
                matches!(site.placement, Placement::Emulated { .. }),
                "{path}: {site:?}"
            );
        }
    });
}

#[test]
fn builds_with_symbols_are_covered_whole_and_optimised_ones_are_not() {
    check(|path, facts, elf, plan| {
        let coverage = plan.coverage.unwrap();
        let [refill] = elf.local(["allocate_from_new_pool"]);
        if facts.kind == crate::elf::ImageKind::SharedLibrary && refill.is_some() {
            assert_eq!(coverage.unseen(), 0, "{path}: {coverage:?}");
            assert!(
                plan.sites.iter().all(|site| site.flags & flag::LARGE_HERE == 0),
                "{path}: nothing is inlined"
            );
        }
        assert!((2..=3).contains(&coverage.resolved), "{path}: {coverage:?}");
        let known = [("usr/bin/python3.11", 171), ("usr/bin/python3.15", 217)];
        if let Some((_, copies)) = known.iter().find(|(name, _)| path.ends_with(name)) {
            println!("{path}: {coverage:?}, {copies} when this was written");
            assert!(coverage.unseen() > 100, "{path}: {coverage:?}");
        }
    });
}

#[test]
fn sites_and_function_probes_are_never_mixed() {
    check(|path, facts, elf, _| {
        let plan = plan(facts, elf);
        let has = |role| plan.sites.iter().any(|site| site.role == role);
        for role in [Role::PoolTaken, Role::PoolRefill, Role::CodeDealloc] {
            assert!(has(role), "{path}: no {role:?}");
        }
        for role in [Role::ObjMalloc, Role::ObjCalloc, Role::ObjRealloc] {
            assert!(!has(role), "{path}: {role:?}");
        }
        let coverage = plan.coverage.unwrap();
        assert!(!plan.references.is_empty());
        assert_eq!(coverage.unseen(), 0, "{path}: {coverage:?} {:?}", plan.notes);
    });
}

#[test]
fn one_function_for_two_roles_gets_one_site() {
    let (_, data, mut facts) = runtimes().swap_remove(0);
    facts.functions.obj = facts.functions.raw;
    let plan = function_sites(&facts, &Elf::parse(&data).unwrap());
    let roles: Vec<Role> = plan.sites.iter().map(|site| site.role).collect();
    let expected = [
        Role::RawMalloc,
        Role::RawCalloc,
        Role::RawRealloc,
        Role::RawFree,
        Role::CodeDealloc,
    ];
    assert_eq!(roles, expected);
    assert_eq!(plan.notes.len(), 4);
}

#[test]
fn raw_reallocs_stand_on_the_jump_to_libc_with_a_moved_pointer() {
    check(|path, facts, elf, plan| {
        let site = plan
            .sites
            .iter()
            .find(|site| site.role == Role::RawRealloc)
            .unwrap();
        let text = instruction_at(elf, site.address).unwrap();
        if facts.notes.is_empty() && text.starts_with("jmp") {
            assert_eq!(site.flags, flag::FIRST_IN_RDI, "{path}: {site:?} {text}");
        }
    });
}
