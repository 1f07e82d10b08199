//! Sites of frees in every interpreter on this machine.

mod hoisted;
mod own;
mod push;
mod snippets;
mod synthetic;

use std::collections::BTreeMap;

use super::*;
use crate::plan::Placement;
use crate::{
    elf::{Elf, ImageKind},
    plan::PlannedSite,
    python::tests::runtimes,
};

fn every(visit: impl Fn(&str, &ImageFacts, &Code<'_>, &Sites)) {
    for (path, data, facts) in runtimes() {
        let elf = Elf::parse(&data).unwrap();
        let code = Code::new(&elf);
        let sites = find(&facts, &code);
        visit(&path.to_string_lossy(), &facts, &code, &sites);
    }
}

fn of(sites: &Sites, role: Role) -> Vec<&PlannedSite> {
    sites.sites.iter().filter(|site| site.role == role).collect()
}

/// What is known to be left out: lines of address and reason.
fn unmatched(sites: &Sites) -> Vec<String> {
    let references = sites.references.iter();
    references
        .filter_map(|reference| match reference.covered {
            Covered::Unmatched(reason) => {
                Some(format!("{} {:?}: {reason}", reference.address, reference.kind))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn every_reference_is_accounted_for() {
    every(|path, _, _, sites| {
        let mut table: BTreeMap<_, usize> = BTreeMap::new();
        for reference in &sites.references {
            let covered = match &reference.covered {
                Covered::Site(_) => "site",
                Covered::Elsewhere(reason) | Covered::Unmatched(reason) => reason,
            };
            *table.entry((reference.kind, covered)).or_default() += 1;
        }
        for ((kind, covered), count) in table {
            println!("{path}: {count:4} {kind:?} {covered}");
        }
        let unmatched = unmatched(sites);
        println!("{path}: {} sites, unmatched: {unmatched:#?}", sites.sites.len());
        let guards = sites
            .references
            .iter()
            .filter(|reference| reference.kind == ReferenceKind::Free);
        assert!(unmatched.len() * 30 <= guards.count(), "{path}: {unmatched:?}");
    });
}

#[test]
fn optimised_builds_have_their_guards_covered() {
    every(|path, _, _, sites| {
        let guards = of(sites, Role::GuardedFree).len();
        println!("{path}: {guards} guards");
        let known = [
            ("usr/bin/python3.11", 52),
            ("usr/bin/python3.14", 78),
            ("usr/bin/python3.15", 80),
        ];
        if let Some((_, least)) = known.iter().find(|(name, _)| path.ends_with(name)) {
            assert!(guards >= *least, "{path}: {guards}");
        }
    });
}

#[test]
fn builds_with_one_copy_have_one_site_for_each_function() {
    every(|path, facts, _, sites| {
        if facts.kind == ImageKind::SharedLibrary {
            let roles: Vec<Role> = sites.sites.iter().map(|site| site.role).collect();
            assert!(roles.contains(&Role::ObjFree), "{path}: {roles:?}");
            assert!(
                roles.contains(&Role::LibcFree) || roles.contains(&Role::RawFree),
                "{path}: {roles:?}"
            );
            assert_eq!(unmatched(sites), Vec::<String>::new(), "{path}");
        }
    });
}

#[test]
fn every_site_is_emulated_and_has_an_operand_where_it_needs_one() {
    every(|path, facts, code, sites| {
        for site in &sites.sites {
            assert!(
                matches!(site.placement, Placement::Emulated { .. }),
                "{path}: {site:?}"
            );
            assert_eq!(code.elf().address_of(site.offset), Some(site.address), "{path}");
            let instruction = code.at(site.address.get()).unwrap();
            match site.role {
                Role::GuardedFree => {
                    assert!(instruction.is_jcc_short_or_near(), "{path}: {site:?}");
                    assert_ne!(site.operand, Operand::default(), "{path}: {site:?}");
                    assert_ne!(
                        site.flags & (flag::IF_ZERO | flag::IF_NOT_ZERO | flag::POOL_ONLY),
                        0,
                        "{path}: {site:?}"
                    );
                }
                Role::LibcFree => {
                    assert_eq!(code.import(&instruction), Some("free"), "{path}: {site:?}");
                }
                Role::ObjFree => assert_eq!(site.function, facts.functions.obj[3], "{path}"),
                Role::RawFree => assert_eq!(site.function, facts.functions.raw[3], "{path}"),
                role => panic!("{path}: {role:?} is no free"),
            }
        }
    });
}

#[test]
fn no_call_of_libc_has_a_site_beside_the_copy_it_belongs_to() {
    every(|path, _, _, sites| {
        let own: Vec<VirtAddr> = of(sites, Role::LibcFree)
            .iter()
            .map(|site| site.address)
            .collect();
        for reference in &sites.references {
            if let Covered::Site(site) = reference.covered
                && site != reference.address
            {
                assert!(!own.contains(&reference.address), "{path}: {reference:?}");
            }
        }
    });
}

/// What covers a reference, with the flags and the operand of its site.
fn site_of(found: &Sites, reference: &Reference) -> Result<(u32, Operand), &'static str> {
    match reference.covered {
        Covered::Site(address) => {
            let site = found.sites.iter().find(|site| site.address == address).unwrap();
            assert_eq!(site.role, Role::GuardedFree);
            Ok((site.flags, site.operand))
        }
        Covered::Elsewhere(reason) | Covered::Unmatched(reason) => Err(reason),
    }
}
